#!/bin/sh
# Several machines that see the same folders: the same line on each, with the name of one of them first.
# NODES=2 and GPUS=8 unless told otherwise; PORT must be free on the machine that is named.
#
#     recipes/two_nodes.sh node1 photos/ --out runs/photos
head=$1
shift
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # else a process that is started again may wait for a dead one
exec torchrun --nnodes="${NODES:-2}" --nproc-per-node="${GPUS:-8}" --max-restarts="${RESTARTS:-3}" \
    --rdzv-backend=c10d --rdzv-id="${JOB:-simdino}" --rdzv-endpoint="$head:${PORT:-29500}" -m simdino pretrain "$@"
