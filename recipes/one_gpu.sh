#!/bin/sh
# One GPU, or a laptop: nothing has to be said. A run that is stopped goes on with `simdino pretrain --resume RUN`.
#
#     recipes/one_gpu.sh photos/ --out runs/photos
exec simdino pretrain "$@"
