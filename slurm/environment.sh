# shellcheck shell=bash disable=SC2034
# The environment of your cluster. Every job script reads this file, and it is the only file that you have to edit.

# --- how to find Python: uncomment the lines for your cluster ---------------------------------------------------------
# module load python cuda
# source .venv/bin/activate
# source "$(conda info --base)/etc/profile.d/conda.sh" && conda activate gan_dist
PYTHON=(python)
# PYTHON=(apptainer exec --nv gan_dist.sif python)

# --- nodes without internet: first run `gan-dist prefetch CONFIG` on the login node, with the same GAN_DIST_CACHE -----
# export GAN_DIST_CACHE=/shared/gan_dist
# export WANDB_MODE=offline

# --- if nodes have several networks, the one to use between nodes: `ip -brief address` lists them ---------------------
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# ----------------------------------------------------------------------------------------------------------------------
