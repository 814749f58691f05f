#!/usr/bin/env bash
# Environments of the rivals that do not install beside us: make_environments.sh FOLDER, about 3.5 GB.
#   FOLDER/torchrec   torch 2.13, fbgemm-gpu-cpu and torchrec 1.8.0: 1.9.0 does not load with torch 2.13
#   FOLDER/tfra       TensorFlow 2.16.2, the last that TensorFlow Recommenders Addons 0.8.1 loads with
set -euo pipefail
folder=${1:?usage: make_environments.sh FOLDER}
python=${PYTHON:-python3.11} # TensorFlow 2.16 has no wheels for newer ones
torch=${TORCH:-torch==2.13.0}  # TORCH="torch==2.13.0+cpu" where the small wheel is to be had
mkdir -p "$folder"

"$python" -m venv "$folder/torchrec"
"$folder/torchrec/bin/pip" install --quiet "$torch" numpy tensordict pyre-extensions torchmetrics==1.0.3 tqdm iopath pandas
# Without dependencies: torchrec's metadata asks for the CUDA build of fbgemm.
"$folder/torchrec/bin/pip" install --quiet --no-deps fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0
"$folder/torchrec/bin/python" -c "import torchrec; print('torchrec', torchrec.__version__)"

"$python" -m venv "$folder/tfra"
"$folder/tfra/bin/pip" install --quiet tensorflow-cpu==2.16.2 tf-keras==2.16.0
"$folder/tfra/bin/pip" install --quiet --no-deps tensorflow-recommenders-addons==0.8.1 typeguard==2.13.3
TF_USE_LEGACY_KERAS=1 TF_CPP_MIN_LOG_LEVEL=3 "$folder/tfra/bin/python" -c \
  "import tensorflow_recommenders_addons as tfra; print('tensorflow-recommenders-addons', tfra.__version__)"
