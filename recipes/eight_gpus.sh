#!/bin/sh
# All GPUs of one machine (GPUS=8 unless told otherwise): the same batch and the same result as one GPU, in less time.
# A process that dies is started again, up to RESTARTS times, and the run goes on from its last checkpoint.
#
#     recipes/eight_gpus.sh photos/ --out runs/photos
exec torchrun --standalone --nproc-per-node="${GPUS:-8}" --max-restarts="${RESTARTS:-3}" -m simdino pretrain "$@"
