# shellcheck shell=bash disable=SC2034
# Your cluster's environment, read by every job script here. This is the one file to edit.

# --- how Python is found: uncomment what fits ---------------------------------------------------------------------------
# module load python cuda
# source .venv/bin/activate
# source "$(conda info --base)/etc/profile.d/conda.sh" && conda activate gan_dist
PYTHON=(python)
# PYTHON=(apptainer exec --nv gan_dist.sif python)

# --- nodes without internet: `gan-dist prefetch CONFIG` on the login node first, with the same GAN_DIST_CACHE -----------
# export GAN_DIST_CACHE=/shared/gan_dist
# export WANDB_MODE=offline

# --- the network between nodes, where there are several: `ip -brief address` lists them ---------------------------------
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# ------------------------------------------------------------------------------------------------------------------------
