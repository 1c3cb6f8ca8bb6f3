"""What each task with labels is trained with (Sections A.2.5, A.3): every value is a flag of finetune.py."""

# Official: gradients of the backbone clipped at 0.75, classifier dropout 0.5, and 2.5k steps of warm-up for images (the paper
# is silent).
PAPER = dict(clip=0.75, drop=0.0, smoothing=0.0, mixup=0.0, balance=False, area=(0.08, 1.0), flip=0.5,
             colour=(32 / 255, 0.4, 0.4, 0.2), windows=4, crops=1, workers=8, cache=0.0, save_every=1000, eval_every=10_000)
RECIPES = {
    # Section A.2.5.
    "video": {**PAPER, "steps": 100_000, "warmup": 2500, "batch": 64, "lr": 0.005, "smoothing": 0.1, "classifier_dropout": 0.5,
              "crops": 3, "frames": 32, "fps": 12.5, "size": 320},
    # Paper: a learning rate of 0.2 (A.3, in its published form; official: 0.005, that of video).
    # Ours: sound at 24 kHz is filtered before it is resampled (official: every other sample of 48 kHz).
    "audio": {**PAPER, "steps": 50_000, "warmup": 5000, "batch": 1024, "lr": 0.2, "mixup": 5.0, "balance": True,
              "classifier_dropout": 0.0, "frames": 64, "fps": 10.0, "rate": 24_000},
    # Section A.3.1.
    "image": {**PAPER, "epochs": 50.0, "warmup": 2500, "batch": 512, "lr": 0.08, "smoothing": 0.1, "classifier_dropout": 0.5,
              "size": 384},
    # Section A.3.2.
    "linear": {**PAPER, "steps": 50_000, "warmup": 0, "batch": 64, "lr": 5e-4, "classifier_dropout": 0.0, "components": 128,
               "sampled": 13, "l2": 0.1, "svm_c": 1e-3},
}
# What the demo's model learns in a minute, from views as large and as long as those of its pre-training.
SMALL = dict(warmup=20, batch=32, clip=0.75, mixup=0.0, area=(0.6, 1.0), colour=(32 / 255, 0.0, 0.0, 0.0), windows=2, crops=1,
             workers=0, cache=1.0, save_every=100, eval_every=100, smoothing=0.1)
DEMO_RECIPES = {
    "video": {**RECIPES["video"], **SMALL, "steps": 300, "lr": 0.05},
    "audio": {**RECIPES["audio"], **SMALL, "steps": 300, "lr": 0.05},
    "image": {**RECIPES["image"], **SMALL, "epochs": None, "steps": 300, "lr": 0.05},
    "linear": {**RECIPES["linear"], **SMALL, "steps": 2000, "batch": 64, "warmup": 0, "eval_every": 2000, "save_every": 1000},
}
