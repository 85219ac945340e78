"""Options and keys of other projects, and the options and keys of this project that replace them."""

from isonet.config.keys import KEYS

# If a word is in several rows, the first replacement that the command accepts counts. ``in_place_of`` finds the last
# part of a key without a row
_ROWS = {
    "--cfg FILE": "a arch backbone c cfg-file conf config config-file config-name model net network yaml",
    "--gpus IDS": "cuda device devices gpu gpu-id gpu-ids num-gpus ngpus",
    "CUDA_VISIBLE_DEVICES= before the command": "cpu no-cuda no-gpu use-cpu",
    "--ckpt CKPT": "checkpoint ckpt-path eval-checkpoint initial-checkpoint load load-from model-path pretrained resume"
    " snapshot weights",
    "--resume CKPT": "auto-resume checkpoint ckpt ckpt-path resume-from",
    "--output NAME": "exp-name experiment log-dir name out-dir outdir output-dir run-name save-dir work-dir",
    "KEY VALUE pairs alone, e.g. ISON.DEPTH 20,": "cfg-options opts options override overrides set",
    "DATASET.ROOT FOLDER": "data data-dir data-path data-root datadir dataroot",
    "DATASET.NAME NAME": "d dataset",
    "DATASET.NUM_CLASSES N": "nb-classes num-class",
    "DATASET.NUM_WORKERS N": "j num-worker workers",
    "DATASET.IMAGE_SIZE PIXELS": "im-size img-size imgsz input-size train-crop-size",
    "SOLVER.BASE_LR RATE": "learning-rate lr lr0",
    "SOLVER.TRAIN_BATCH_SIZE N": "b batch batch-size bs ims-per-batch samples-per-gpu",
    "SOLVER.MAX_EPOCHS N": "epoch epochs max-epoch num-epochs",
    "SOLVER.LR_MILESTONES [30,60]": "decay-epochs lr-steps milestones steps",
    "SOLVER.SCHEDULE cosine": "lr-policy lr-scheduler sched scheduler",
    "SOLVER.WEIGHT_DECAY FACTOR": "wd",
    "SOLVER.WARMUP_EPOCH N": "lr-warmup-epochs warmup-epochs",
    "SOLVER.ACCUMULATE N": "accumulate-grad-batches grad-accum-steps gradient-accumulation-steps update-freq",
    "MODEL.INIT_FROM CKPT": "checkpoint ckpt finetune initial-checkpoint load-from pretrained weights",
    "RUNTIME.SEED N": "rng-seed",
    "RUNTIME.AMP bf16": "fp16 mixed-precision precision",
    "OUTPUT_DIR FOLDER": "o out-dir output work-dir",
    "python test.py --ckpt CKPT": "e eval eval-only evaluate test test-only validate",
    "torchrun --nproc-per-node N": "dist-backend dist-url distributed launcher local-rank multiprocessing-distributed"
    " num-machines world-size",
}
# mmcv, detectron2, Swin and Hydra use these keys, some with underscores around them, to name a base config
BASES = {"base", "defaults", "extends", "import", "imports", "include", "includes", "inherit", "parent"}


def in_place_of(word: str) -> list[str]:
    """Return the replacements, with a value, of an option such as ``--lr`` or a part of a key such as ``BASE_LR``."""
    name = word.lstrip("-").lower().replace("_", "-")
    keys = {key: key.lower().replace("_", "-") for key in KEYS}
    own = [f"{key} VALUE" for key, spelt in keys.items() if name in (spelt, spelt.rpartition(".")[2])]
    return [replacement for replacement, words in _ROWS.items() if name in words.split()] + own
