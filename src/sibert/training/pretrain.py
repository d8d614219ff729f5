"""Pre-training: a recipe, a run directory, and `transformers.Trainer` in between."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    ModernBertForMaskedLM,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_callback import ProgressCallback as TransformersProgressCallback

from sibert.data import (
    CorpusReport,
    PreparedCorpus,
    StreamingMaskedDataset,
    TokenFrequencies,
    collate,
    collate_flat,
    unigram_entropy,
)
from sibert.models import (
    BertTwinForMaskedLM,
    BertTwinForPreTraining,
    ModernBertTwinForMaskedLM,
    SibertConfig,
    SibertForMaskedLM,
    SibertForPreTraining,
    initialize_from_frequencies,
    modern_bert_config,
    size_of,
)
from sibert.optim import Lamb, ScaleInvariantModel, build_optimizer, schedule, schedule_groups
from sibert.training.callbacks import ProgressCallback, SignalCallback, exit_status
from sibert.training.checkpoints import discard_after, latest_checkpoint
from sibert.training.environment import environment
from sibert.training.metrics import MetricsFile
from sibert.training.pretraining_corpus import pretraining_corpus
from sibert.training.recipe import PretrainRecipe
from sibert.training.run_directory import RunDirectory
from sibert.training.trainer import PretrainTrainer

__all__ = ["build_model", "build_training_optimizer", "run_pretraining"]

CORPUS = "corpus.json"
TWIN_LR = {"adamw": 5e-4, "lamb": 2e-3, "sgd": 0.1}
TWIN_WEIGHT_DECAY = 0.01
TWIN_MAX_GRAD_NORM = {"adamw": 1.0, "lamb": 1.0, "sgd": 0.0}
TWIN_WARMUP_SHARE = 0.1
HEAD_WARMUP_SHARE = 0.01
"""The paper warms up LAMB on the head during the first hundredth of the run; the encoder never."""


def build_model(
    recipe: PretrainRecipe, vocab_size: int, pad_token_id: int, frequencies: TokenFrequencies | None = None
) -> PreTrainedModel:
    """Make and initialise the model of a recipe.

    Args:
        recipe: The recipe; its seed determines the initialisation.
        vocab_size: Number of tokens of the tokenizer.
        pad_token_id: Its padding token.
        frequencies: Of the tokens, from which SIBERT and twin start (`initialize_from_frequencies`); None = not known.

    Returns:
        SIBERT or one of its twins, scaled by `initial_scale`.
    """
    set_seed(recipe.seed)
    fields: dict[str, Any] = {
        **size_of(recipe.size),
        "vocab_size": vocab_size,
        "pad_token_id": pad_token_id,
        # Positions that training never sees would be noise: the model is as long as its sequences.
        "max_position_embeddings": recipe.seq_length,
    }
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), recipe.dropout)
    model: PreTrainedModel
    if recipe.model == "sibert":
        # Without pairs all tokens are of one type, whose embedding would only be in the way (see `SibertConfig`).
        segments, pooling = (2, "cls") if recipe.next_sentence else (0, "mean")
        config = SibertConfig(
            **fields, **dropout, invariance=recipe.invariance, type_vocab_size=segments, classifier_pooling=pooling
        )
        model = SibertForPreTraining(config) if recipe.next_sentence else SibertForMaskedLM(config)
    elif recipe.model == "modernbert":
        rates: dict[str, Any] = dict.fromkeys(("embedding_dropout", "mlp_dropout", "attention_dropout"), recipe.dropout)
        model = ModernBertTwinForMaskedLM(modern_bert_config(**fields, **rates))
    else:
        twin_config = BertConfig(**fields, **dropout)
        model = BertTwinForPreTraining(twin_config) if recipe.next_sentence else BertTwinForMaskedLM(twin_config)
    if frequencies is not None:
        initialize_from_frequencies(model, frequencies.log_targets(), frequencies.inputs(recipe.mask_rate))
    if recipe.initial_scale != 1.0:
        _scale(model, recipe.initial_scale)
    if recipe.model == "sibert":
        model.base_model.embeddings.one_gradient = recipe.invariance != "joint"
        if recipe.backend == "reference":
            model.set_attention_backend("reference")
    if recipe.precision == "bf16-weights":
        _to_bfloat16(model)
    if recipe.gradient_checkpointing:
        # Later 5.x versions of transformers renamed the method and warn about the old name.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    return model


@torch.no_grad()
def _scale(model: PreTrainedModel, factor: float) -> None:
    if isinstance(model, ScaleInvariantModel):
        parameters = [p for group in model.scale_invariant_groups().values() for _, p in group.members]
    else:
        parameters = list(model.base_model.parameters())
    for parameter in {id(p): p for p in parameters}.values():
        parameter.mul_(factor)


def _to_bfloat16(model: PreTrainedModel) -> None:
    """Keep the scale-invariant parameters in bfloat16; the rest is small, and its optimizer rounds to nearest."""
    assert isinstance(model, ScaleInvariantModel)
    for group in model.scale_invariant_groups().values():
        for _, parameter in group.members:
            parameter.data = parameter.data.bfloat16()


def build_training_optimizer(
    recipe: PretrainRecipe, model: PreTrainedModel
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Make the optimizer and the learning-rate schedule of a recipe.

    Args:
        recipe: The recipe.
        model: The model to train.

    Returns:
        The optimizer, and a schedule that never warms up the scale-invariant groups.
    """
    optimizer: torch.optim.Optimizer
    if recipe.optimizer_name == "clipped_sgd":
        optimizer = build_optimizer(
            model,
            intrinsic_lr=recipe.chosen_intrinsic_lr,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            clip=recipe.clip,
            two_sided=recipe.two_sided,
            head_lr=recipe.head_lr,
            implementation="reference" if recipe.backend == "reference" else None,
        )
        share = HEAD_WARMUP_SHARE
    else:
        optimizer = _twin_optimizer(recipe, model)
        share = TWIN_WARMUP_SHARE
    warmup = round(share * recipe.steps) if recipe.warmup_steps is None else recipe.warmup_steps
    invariant = [group["name"] for group in optimizer.param_groups if group.get("scale_invariant")]
    never_warm = schedule(recipe.schedule, recipe.steps)
    warmed = schedule(recipe.schedule, recipe.steps, warmup_steps=warmup)
    return optimizer, schedule_groups(optimizer, warmed, dict.fromkeys(invariant, never_warm))


def _twin_optimizer(recipe: PretrainRecipe, model: PreTrainedModel) -> torch.optim.Optimizer:
    """Make a baseline optimizer, with no weight decay on biases and normalisations, as BERT is trained."""
    name = recipe.optimizer_name
    decay = TWIN_WEIGHT_DECAY if recipe.weight_decay is None else recipe.weight_decay
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": decay, "name": "matrices"},
        {"params": vectors, "weight_decay": 0.0, "name": "vectors"},
    ]
    lr = TWIN_LR[name] if recipe.lr is None else recipe.lr
    factories: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "lamb": Lamb,
        "sgd": torch.optim.SGD,
    }
    return factories[name](groups, lr=lr)


def _training_arguments(recipe: PretrainRecipe, run: RunDirectory) -> TrainingArguments:
    clipped = recipe.optimizer_name == "clipped_sgd"
    default_max_grad_norm = 0.0 if clipped else TWIN_MAX_GRAD_NORM[recipe.optimizer_name]
    return TrainingArguments(
        output_dir=str(run.checkpoints),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        max_grad_norm=default_max_grad_norm if recipe.max_grad_norm is None else recipe.max_grad_norm,
        logging_steps=recipe.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=recipe.evaluation_interval,
        save_strategy="steps",
        save_steps=recipe.checkpoint_interval,
        save_total_limit=recipe.keep_checkpoints,
        seed=recipe.seed,
        bf16=recipe.precision in ("bf16", "bf16-weights"),
        fp16=recipe.precision == "fp16",
        torch_compile=recipe.compile,
        use_cpu=recipe.device == "cpu" or not torch.cuda.is_available(),
        dataloader_num_workers=recipe.workers,
        dataloader_persistent_workers=recipe.workers > 0,
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available() and recipe.device != "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
    )


def run_pretraining(recipe: PretrainRecipe, out: Path, *, resume: bool = False, console: Console | None = None) -> int:
    """Pre-train a model, or go on with a run that was stopped.

    Args:
        recipe: The recipe; with `resume` the one the run began with.
        out: Run directory (`RunDirectory` tells its layout).
        resume: Go on from the latest whole checkpoint.
        console: Where progress is shown; default: standard output.

    Returns:
        0, or 128 + signal number when a signal stopped the run after a checkpoint was saved.

    Raises:
        ValueError: On data, directories or checkpoints that cannot be used.
    """
    run = RunDirectory(Path(out))
    if resume and run.finished:
        raise ValueError(f"{run.path} is finished; evaluate it, or start another run with --out")
    if not resume and (run.path.exists() and any(run.path.iterdir()) if run.path.is_dir() else run.path.exists()):
        run.create(recipe)  # raises, with the reason
    arguments = _training_arguments(recipe, run)
    if recipe.compile and arguments.device.type == "cpu":
        _require_compiler()
    main_process = arguments.process_index == 0
    plain = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    console = (console or plain) if main_process else Console(quiet=True)
    checkpoint = _checkpoint_to_resume(run, console) if resume else None
    if main_process and not resume:
        run.create(recipe)
    try:
        corpus = _prepare(recipe, run, arguments, resume, console)
        trainer, signals = _build_trainer(recipe, run, corpus, arguments, console)
    except BaseException:
        if main_process and not resume:
            run.withdraw()  # so that the corrected command is not refused because of a directory without a run
        raise
    if main_process:
        _announce(recipe, run, trainer, console, new=not resume)
    if resume:
        _rewind(trainer, run, checkpoint, main_process)
    with signals.listening(), compiler_options() if recipe.compile else nullcontext():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if signals.received is not None and trainer.state.global_step < recipe.steps:
        console.print(
            f"stopped after step {trainer.state.global_step}; go on with: sibert pretrain --resume {run.path}"
        )
        return exit_status(signals.received)
    if trainer.state.global_step < recipe.steps:
        raise ValueError("the stream has no text to train on: give more of it, or a smaller --validation-fraction")
    if trainer.evaluated_step != trainer.state.global_step:
        trainer.evaluate()
    if main_process:
        run.save_model(_savable(trainer), corpus.tokenizer)
        console.print(f'saved the model to {run.path}; try: sibert fill-mask {run.path} "... [MASK] ..."')
    return 0


def compiler_options() -> AbstractContextManager[None]:
    """Let backward make views of kept tensors again: else a mask of each ReLU is kept, byte by byte, which is slow."""
    from torch._functorch import config  # seldom needed

    patched: AbstractContextManager[None] = config.patch(recompute_views=True)  # type: ignore[no-untyped-call]
    return patched


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import, and seldom needed
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ValueError(
            "--compile needs a C++ compiler on a CPU and found neither g++ nor clang++: install one (on Debian: "
            "apt-get install g++), or leave --compile out"
        ) from None


def _checkpoint_to_resume(run: RunDirectory, console: Console) -> Path | None:
    checkpoint, passed_over = latest_checkpoint(run.checkpoints)
    for sentence in passed_over:
        console.print(sentence)
    if checkpoint is None and passed_over:
        console.print("there is no whole checkpoint: starting from the first step")
    return checkpoint


def _rewind(trainer: PretrainTrainer, run: RunDirectory, checkpoint: Path | None, main_process: bool) -> None:
    """Forget what came after a checkpoint (or all, if there is none): records, and checkpoints that are not whole."""
    step = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    assert trainer.metrics_file is not None
    if checkpoint is not None:
        trainer.load_window(checkpoint)
    trainer.evaluated_step = trainer.metrics_file.last_evaluation(step)
    if main_process:
        trainer.metrics_file.truncate_after(step)
        discard_after(run.checkpoints, step)


def _prepare(
    recipe: PretrainRecipe, run: RunDirectory, arguments: TrainingArguments, resume: bool, console: Console
) -> PreparedCorpus:
    """Read, tokenise and pack the data; the first process works, the others then find its cache."""
    started = time.perf_counter()
    # The tokenizer of the run, not one trained anew: WordPiece training may differ from process to process.
    own_tokenizer = str(run.tokenizer) if run.tokenizer.exists() else recipe.tokenizer
    with arguments.main_process_first(local=False, desc="corpus") if arguments.world_size > 1 else nullcontext():
        corpus = pretraining_corpus(recipe, own_tokenizer)
        if arguments.process_index == 0 and not run.tokenizer.exists():
            corpus.tokenizer.save_pretrained(run.tokenizer)
            run.write_json(CORPUS, corpus.report.to_dict())
    if resume:
        run.check_unchanged(CORPUS, corpus.report.to_dict())
    console.print(f"data ready in {time.perf_counter() - started:.0f} s: {describe(corpus.report)}")
    return corpus


def describe(report: CorpusReport) -> str:
    """Say in one line what the data are, and then what was left out."""
    if not report.documents:
        return f"a stream of {report.sources} sources, {report.validation_examples} sequences of it to validate on"
    line = (
        f"{report.documents} documents, {report.train_tokens / 1e6:.2f} M tokens to train on, "
        f"{report.validation_tokens / 1e3:.0f} k to validate on"
    )
    left_out = [
        f"{count} {what}"
        for count, what in ((report.duplicates, "duplicates"), (report.skipped, "unreadable"))
        if count
    ]
    return "\n".join([line + (f" ({', '.join(left_out)} left out)" if left_out else ""), *report.skipped_messages])


def _build_trainer(
    recipe: PretrainRecipe, run: RunDirectory, corpus: PreparedCorpus, arguments: TrainingArguments, console: Console
) -> tuple[PretrainTrainer, SignalCallback]:
    tokenizer = corpus.tokenizer
    masking: dict[str, Any] = {"mask_rate": recipe.mask_rate, "whole_word": recipe.whole_word, "seed": recipe.seed}
    train, validation = corpus.masked_train(**masking), corpus.masked_validation(**masking)
    batch = recipe.batch_size * recipe.accumulation * arguments.world_size
    if isinstance(train, StreamingMaskedDataset):
        train.repeat = True  # an epoch of a stream may end within a step
    elif len(train) < batch:
        raise ValueError(
            f"the training split has {len(train)} sequences of {recipe.seq_length} tokens, fewer than the {batch} of a "
            "step; give more text, or a smaller --batch-size, --accumulation or --seq-length"
        )
    model = build_model(recipe, len(tokenizer), tokenizer.pad_token_id, corpus.frequencies())
    optimizer, lr_schedule = build_training_optimizer(recipe, model)
    trainer = PretrainTrainer(
        model=model,
        args=arguments,
        data_collator=collate_flat if _is_flat(recipe, arguments) else collate,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        optimizers=(optimizer, lr_schedule),
        metrics_file=MetricsFile(run.metrics),
        unigram_entropy=unigram_entropy(validation),
        gradient_release=recipe.gradient_release,
        return_logits=recipe.model != "sibert" or recipe.backend == "reference",
    )
    for callback in (PrinterCallback, TransformersProgressCallback):
        trainer.remove_callback(callback)
    signals = SignalCallback()
    trainer.add_callback(signals)
    trainer.add_callback(ProgressCallback(console))
    if trainer.is_world_process_zero():
        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(run.tensorboard))))
    return trainer, signals


def _is_flat(recipe: PretrainRecipe, arguments: TrainingArguments) -> bool:
    """Whether there is padding that can be left out: pairs are of any length, blocks are full.

    `torch.nn.DataParallel`, which Trainer takes for several GPUs of one process, would cut a flat batch anywhere.
    """
    return recipe.backend == "auto" and recipe.model == "sibert" and recipe.next_sentence and arguments.n_gpu <= 1


def _announce(
    recipe: PretrainRecipe, run: RunDirectory, trainer: PretrainTrainer, console: Console, *, new: bool
) -> None:
    """Write the environment, and say in one line what is trained on what."""
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    if new:
        record = {**environment(), "parameters": parameters, "processes": trainer.args.world_size}
        run.write_json("environment.json", record)
    console.print(
        f"{recipe.model} {recipe.size}, {parameters / 1e6:.1f} M parameters, {recipe.optimizer_name}, "
        f"{recipe.steps} steps of {recipe.batch_size * recipe.accumulation * trainer.args.world_size} x "
        f"{recipe.seq_length} tokens, on {trainer.args.device}; run directory {run.path}"
    )


def _savable(trainer: PretrainTrainer) -> PreTrainedModel:
    """Strip the wrappers of training, and let a twin be what it is: a plain model of `transformers`, in one dtype."""
    model: PreTrainedModel = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    if len({parameter.dtype for parameter in model.parameters()}) > 1:
        model.float()
    twins = {
        BertTwinForMaskedLM: BertForMaskedLM,
        BertTwinForPreTraining: BertForPreTraining,
        ModernBertTwinForMaskedLM: ModernBertForMaskedLM,
    }
    model.__class__ = twins.get(type(model), type(model))
    return model
