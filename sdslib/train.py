"""The objective, term by term, and the loop that yields its steps.

B pairs, D embedding, C,H,W latent, M pairs that the teacher sees. Every draw derives from (seed,
purpose, step), so a run that was killed goes on bit for bit from its last checkpoint with no RNG
state saved. Several processes (`sdslib.io.distributed`) take each their part of the same batch.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn

from sdslib import losses
from sdslib.bridge import Bridge
from sdslib.config import ARMS, FinetuneConfig, derive_seed, inert
from sdslib.io import distributed, trackers
from sdslib.io.lazy import named
from sdslib.io.state import pack_state, plain_torch, unpack_state, without_settings
from sdslib.pairs import Batch, Pairs, batches, steps_per_epoch
from sdslib.student import Student
from sdslib.teacher import Teacher

ESTIMATORS = {"through": losses.denoising_loss, "residual": losses.score_distillation_loss}
P = TypeVar("P")


class TrainingError(RuntimeError):
    """Training stopped before the weights were touched; says the term, the step and the pairs."""


@dataclass(frozen=True)
class Models:
    """Who takes part in a step; an arm without a teacher has neither teacher nor bridge."""

    student: Student
    trained: Sequence[nn.Parameter]
    teacher: Teacher | None = None
    bridge: Bridge | None = None
    negative: Callable[[str, int], str] | None = None  # (caption, seed) -> a caption it is not
    latents: Callable[[Tensor], Tensor] | None = None  # indices [B] -> VAE latents [B, C, H, W]
    verdicts: Callable[[Sequence[int], Sequence[str]], list[Any]] | None = None  # arms.verdicts
    untouched: Student | None = None  # the student as it was loaded, frozen


@dataclass(frozen=True)
class TermInputs:
    """What a term is computed from: pairs, embeddings of their images [B, D], t [B] and eps."""

    batch: Batch
    image_emb: Tensor
    t: Tensor
    eps: Tensor
    known: dict[str, Tensor] = field(default_factory=dict)  # captions that a term has embedded [D]


# --- the objective -------------------------------------------------------------------------------


def objective(
    models: Models,
    batch: Batch,
    t: Tensor,
    eps: Tensor,
    config: FinetuneConfig,
    rows: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_total = L_CLIP + sds_weight * L_SDS (Basu et al. 2024, the paper's one equation).

    The scalar, and its terms with one value a pair [B]: "clip", and "sds" for what the arm puts in
    the second one's place. Of several processes each has the first term of all pairs, and the
    second of its own.

    `rows` [M], of `draw_rows`, are the places of the pairs that the second term sees; t and eps
    are theirs then, [M]. Their values are scaled so that the mean over the batch, those that are
    not seen counted as 0, is the full batch's on average.
    """
    arm, terms = ARMS[config.arm], dict[str, Tensor]()
    image_emb = models.student.encode_images(batch.pixels)
    seen = TermInputs(batch, image_emb, t, eps)
    if arm.clip:
        terms["clip"] = named(arm.clip)(models, seen, config)
    if arm.sds and rows is None:
        terms["sds"] = named(arm.sds)(models, seen, config)
    elif arm.sds and rows is not None:
        terms["sds"] = image_emb.new_zeros(len(image_emb))
        if len(rows):
            part = TermInputs(batch.take(rows), image_emb[rows], t, eps, seen.known)
            values = named(arm.sds)(models, part, config)
            scale = config.batch_size / seen_pairs(config)
            terms["sds"] = terms["sds"].index_put((rows.to(values.device),), scale * values)
    weights = {"clip": 1.0, "sds": config.sds_weight}  # L_CLIP + sds_weight * L_SDS
    return torch.stack([weights[k] * values.mean() for k, values in terms.items()]).sum(), terms


def clip_term(models: Models, seen: TermInputs, config: FinetuneConfig) -> Tensor:
    """L_CLIP of the batch, all processes' pairs together."""
    text_emb = embed_captions(models, seen.batch.captions, seen.image_emb)
    seen.known.update(zip(seen.batch.captions, text_emb, strict=True))
    image_emb, text_emb = of_all_processes(seen.image_emb, text_emb)
    return models.student.contrast(image_emb, text_emb)


def sds_term(models: Models, seen: TermInputs, config: FinetuneConfig) -> Tensor:
    """L_SDS: the frozen teacher's denoising error on z = h_w(f(x)) under the image's caption."""
    return denoise(models, seen, seen.batch.captions, config)


def seen_pairs(config: FinetuneConfig) -> int:
    """M: how many pairs of a batch the second term sees, at least one."""
    return max(1, round(config.sds_share * config.batch_size))


def draw_rows(step: int, config: FinetuneConfig) -> Tensor | None:
    """The places [M] of a step's pairs that the teacher sees, ascending; None where it sees all.

    Every set of M places is as likely as any other.
    """
    if seen_pairs(config) == config.batch_size:
        return None
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "share", step))
    order = torch.randperm(config.batch_size, generator=generator)
    return order[: seen_pairs(config)].sort().values


def in_parts(
    values: Callable[[Tensor, slice], Tensor], z: Tensor, size: int | None = None
) -> Tensor:
    """`values(z, rows)` [B] of latents z [B, C, H, W], `size` rows at a time, or all at once.

    Value and gradient are those of all rows at once, but only one part's activations are alive:
    its gradient with respect to z is taken as soon as its values are there. Each value may depend
    on its own row of z alone, and on nothing else that learns.
    """
    if size is None or len(z) <= size:
        return values(z, slice(0, len(z)))
    found = []
    for start in range(0, len(z), size):
        rows = slice(start, start + size)
        own = z[rows].detach().requires_grad_(z.requires_grad)
        some = values(own, rows)
        if some.requires_grad:
            (slope,) = torch.autograd.grad(some.sum(), own)
            # z - z.detach() is exactly zero, and passes the slope on.
            some = some.detach() + ((z[rows] - own.detach()) * slope).flatten(1).sum(1)
        found.append(some)
    return torch.cat(found)


def of_all_processes(*embeddings: Tensor) -> tuple[Tensor, ...]:
    """The embeddings [B, D] of all processes' pairs, through one exchange."""
    together = distributed.gather(torch.cat(embeddings, dim=1))
    return together.chunk(len(embeddings), dim=1)


def embed_captions(models: Models, captions: Sequence[str], like: Tensor) -> Tensor:
    """Captions of the batch as the student embeds them, [B, D] of unit length."""
    student = models.student
    return student.encode_texts(student.tokenize(captions).to(like.device))


def map_images(models: Models, seen: TermInputs, config: FinetuneConfig) -> Tensor:
    """z = h_w(f(x)), the latents [B, C, H, W] of the images; f is what `bridge_input` says."""
    emb = seen.image_emb
    if config.bridge_input != "projected":
        entering = models.student.map_input(seen.batch.pixels, config.bridge_input)
        emb = nn.functional.normalize(entering, dim=-1)
    return there(models.bridge, "a bridge", config)(emb)


def there(model: P | None, what: str, config: FinetuneConfig) -> P:
    """What takes part, or a TrainingError where the arm needs it and it is missing."""
    if model is None:
        raise TrainingError(f"arm {config.arm!r} needs {what}")
    return model


def denoise(
    models: Models, seen: TermInputs, captions: Sequence[str], config: FinetuneConfig
) -> Tensor:
    """The denoising error [B] of z = h_w(f(x)) under these captions, by the run's estimator."""
    teacher = there(models.teacher, "a teacher", config)
    text = teacher.embed_texts(captions)

    alpha_bar = teacher.alpha_bar[seen.t]
    weight = losses.space_weight(alpha_bar, config.sds_space)

    def values(z: Tensor, rows: slice) -> Tensor:
        return weight[rows] * ESTIMATORS[config.sds_gradient](
            teacher.predict_noise,
            z,
            text[rows],
            seen.t[rows],
            seen.eps[rows],
            alpha_bar[rows],
            config.sds_reduction,
        )

    return in_parts(values, map_images(models, seen, config), config.micro_batch)


def draw_noise(
    step: int, batch_size: int, latent_shape: Sequence[int], config: FinetuneConfig
) -> tuple[Tensor, Tensor]:
    """t [B] int64 and eps [B, C, H, W] of one step.

    Each t is uniform on t_min...t_max; over the batch they are stratified, one from each of B
    equal parts in random order, which lowers the variance of the step's gradient for nothing.
    """
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "noise", step))
    place = torch.randperm(batch_size, generator=generator)
    place = (place + torch.rand(batch_size, generator=generator, dtype=torch.float64)) / batch_size
    t = config.t_min + (place * (config.t_max - config.t_min + 1)).long()
    return t.clamp_max(config.t_max), torch.randn((batch_size, *latent_shape), generator=generator)


# --- the loop ------------------------------------------------------------------------------------


def learning_rate(step: int, steps: int, config: FinetuneConfig) -> float:
    """Linear warm-up over `warmup` steps, then half a cosine down to zero."""
    warmup = min(config.warmup, steps - 1)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def total_steps(config: FinetuneConfig, pairs: Pairs) -> int:
    """The optimizer steps of the run, from `steps` or from `epochs`."""
    per_epoch = steps_per_epoch(pairs, config.batch_size)
    return config.steps or (config.epochs or 1) * per_epoch


def make_optimizer(models: Models, config: FinetuneConfig) -> torch.optim.Optimizer:
    """AdamW over what trains; vectors (LayerNorms, biases) are not decayed."""
    params = [*models.trained, *(models.bridge.parameters() if models.bridge else ())]
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr)


@dataclass(frozen=True)
class Step:
    """What one optimizer step saw; losses are batch means, norms are before clipping."""

    step: int
    loss: float
    clip: float | None
    sds: float | None
    eps_error: float | None  # mean squared eps error an element, whatever the reduction
    lr: float
    grad_norm: float
    bridge_grad_norm: float | None
    grad_ratio: float | None  # |sds_weight grad L_SDS| / |grad L_CLIP|, of the student's parameters
    seconds: float
    validation: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, float | int | None]:
        """One flat record of the run's history."""
        row = asdict(self)
        return row | {f"val_{k}": v for k, v in row.pop("validation").items()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Step:
        """The step whose `row` this is."""
        known = {f.name for f in fields(cls)} - {"validation"}
        found = {k.removeprefix("val_"): v for k, v in row.items() if k.startswith("val_")}
        return cls(**{k: v for k, v in row.items() if k in known}, validation=found)


class Loop:
    """Training as an iterator of `Step`s that can be packed up after any of them.

    `validate(student)` is called every `eval_every` steps and after the last one. With
    `config.tracker` each step is also logged to `folder`/tracker, for that tracker's own viewer.
    Of several processes each iterates, over the same steps: what a `Step` says is of them all.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        models: Models,
        pairs: Pairs,
        validate: Callable[[Student], dict[str, float]] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.config, self.models, self.pairs, self.validate = config, models, pairs, validate
        self.steps, self.done, self.folder = total_steps(config, pairs), 0, folder
        with without_settings("ACCELERATE_"):
            self.accelerator = Accelerator(
                cpu=_device(models).type == "cpu",
                mixed_precision="no",
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                log_with=config.tracker,
                project_dir=folder,
            )
            self.optimizer = self.accelerator.prepare(make_optimizer(models, config))

    def pack(self) -> dict[str, Tensor]:
        """All tensors that going on needs; `unpack` is its inverse."""
        return pack_state(self._modules(), self.optimizer.optimizer)

    def unpack(self, tensors: dict[str, Tensor], done: int) -> None:
        """Go on after step number `done`, counted from 1."""
        unpack_state(tensors, self._modules(), self.optimizer.optimizer)
        self.done = done

    def _modules(self) -> dict[str, nn.Module]:
        held: dict[str, nn.Module] = {"student": nn.ParameterList(self.models.trained)}
        return held if self.models.bridge is None else held | {"bridge": self.models.bridge}

    def __iter__(self) -> Iterator[Step]:
        config, student = self.config, self.models.student
        distributed.same(self._learning())
        loader = batches(
            self.pairs,
            student.transform,
            config.batch_size,
            config.seed,
            range(self.done, self.steps),
            config.num_workers,
            distributed.part(config.batch_size),
        )
        coming = iter(loader)
        with trackers.begun(self.accelerator, config.tracker, self.folder, self.done):
            while (step := self._next(coming)) is not None:
                if config.tracker:  # nothing of what this step did not measure
                    told = {k: v for k, v in step.row().items() if v is not None and k != "step"}
                    self.accelerator.log(told, step.step)
                yield step

    def _next(self, coming: Iterator[Batch]) -> Step | None:
        with plain_torch():
            batch = next(coming, None)
            return None if batch is None else self._within_memory(batch)

    def _within_memory(self, batch: Batch) -> Step:
        try:
            return self._step(batch)
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)):
                raise
            reason = str(error).splitlines()[0]
        # Out here the error is gone, whose traceback would keep the step's tensors alive.
        self.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        config = self.config
        raise TrainingError(
            f"step {self.done + 1}: out of memory ({reason}); nothing of the step is kept. Take a "
            f"batch_size below {config.batch_size}, precision 'bf16' in place of "
            f"{config.precision!r}, or less to train than {config.trainable!r}; micro_batch and "
            "checkpointing need less too"
        )

    def _step(self, batch: Batch) -> Step:
        start, step, config, models = time.perf_counter(), self.done, self.config, self.models
        lr = learning_rate(step, self.steps, config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        models.student.train()
        t, eps, rows = self._draws(step)
        loss, terms = objective(models, batch.to(_device(models)), t, eps, config, rows)
        _check_finite(terms, step, batch)
        ratio = self._ratio(terms, step)
        self.optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:  # not where the objective is of pairs in other processes alone
            self.accelerator.backward(loss)
        distributed.mean_gradients(self._learning())
        norms = self._clip(step, batch)
        self.optimizer.step()
        self.done += 1
        return Step(
            step=self.done,
            lr=lr,
            grad_norm=norms[0],
            bridge_grad_norm=norms[1],
            grad_ratio=ratio,
            validation=self._validation(),
            seconds=time.perf_counter() - start,
            **self._means(terms, loss),
        )

    def _learning(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _draws(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """t, eps and the places of the pairs that the teacher sees, of this process's part."""
        teacher, device = self.models.teacher, _device(self.models)
        shape = teacher.latent_shape if teacher is not None else ()
        own, rows = distributed.part(self.config.batch_size), draw_rows(step, self.config)
        t, eps = draw_noise(step, seen_pairs(self.config), shape, self.config)
        if rows is None:
            return t[own].to(device), eps[own].to(device), None
        mine = (own.start <= rows) & (rows < own.stop)
        return t[mine].to(device), eps[mine].to(device), rows[mine] - own.start

    def _ratio(self, terms: dict[str, Tensor], step: int) -> float | None:
        """|sds_weight grad L_SDS| / |grad L_CLIP|, at the first step and where validation is due.

        A map of zeros hands no gradient on before a step has moved it: its first is step 1.
        """
        first = 1 if self.config.bridge_start == "zero" else 0
        due = step == first or (step > first and self._is_due(step + 1))
        if "sds" not in terms or not due:
            return None
        sds = self.config.sds_weight * _norm(terms["sds"], self.models.trained)
        if sds == 0 and step == first:
            term = f"L_{ARMS[self.config.arm].weighs} gives no gradient to"
            raise TrainingError(f"{term} any trainable parameter of the student")
        if "clip" not in terms:
            return None
        ratio = sds / max(_norm(terms["clip"], self.models.trained), 1e-30)
        if step == 0 and (told := inert(self.config, ratio)):
            warnings.warn(told, stacklevel=2)
        return ratio

    def _clip(self, step: int, batch: Batch) -> tuple[float, float | None]:
        """Gradient norms; student and bridge are clipped apart, so that neither damps the other."""
        groups = {"student": self.models.trained}
        if self.models.bridge is not None:
            groups["bridge"] = list(self.models.bridge.parameters())
        norms = []
        for name, params in groups.items():
            norm = float(self.accelerator.clip_grad_norm_(params, self.config.grad_clip))
            if not math.isfinite(norm):
                raise TrainingError(
                    f"step {step + 1}: the gradient of the {name} is {norm}; the weights are as "
                    f"they were. Pairs {_pairs(batch)}"
                )
            norms.append(norm)
        return norms[0], norms[1] if len(norms) > 1 else None

    def _means(self, terms: dict[str, Tensor], loss: Tensor) -> dict[str, Any]:
        found = distributed.mean([loss, *(values.mean() for values in terms.values())])
        total, *each = torch.stack(found).tolist()
        means = dict(zip(terms, each, strict=True))
        teacher, error = self.models.teacher, means.get("sds")
        of_eps = ARMS[self.config.arm].denoises and self.config.sds_space == "eps"
        if teacher is None or not of_eps:
            error = None
        elif error is not None and self.config.sds_reduction == "sum":
            error /= math.prod(teacher.latent_shape)
        ours = {"clip": means.get("clip"), "sds": means.get("sds"), "eps_error": error}
        return ours | {"loss": total}

    def _is_due(self, step: int) -> bool:
        every = self.config.eval_every
        return every > 0 and (step % every == 0 or step == self.steps)

    def _validation(self) -> dict[str, float]:
        if self.validate is None or not self._is_due(self.done):
            return {}
        return self.validate(self.models.student)


def _device(models: Models) -> torch.device:
    return models.trained[0].device


def _norm(values: Tensor, params: Sequence[nn.Parameter]) -> float:
    grads: Sequence[Tensor | None] = [None] * len(params)
    if values.requires_grad:
        grads = torch.autograd.grad(values.mean(), params, retain_graph=True, allow_unused=True)
    if distributed.count() > 1:
        pairs = zip(grads, params, strict=True)
        grads = distributed.mean([torch.zeros_like(p) if g is None else g for g, p in pairs])
    return math.sqrt(sum(float(g.double().square().sum()) for g in grads if g is not None))


def _pairs(batch: Batch) -> list[int]:
    return [] if batch.whole is None else batch.whole.tolist()


def _check_finite(terms: dict[str, Tensor], step: int, batch: Batch) -> None:
    for name, values in terms.items():
        wrong = ~torch.isfinite(values)
        if wrong.any():
            known = batch.index.tolist() if len(values) == len(batch.index) else _pairs(batch)
            where = [known[i] for i in wrong.nonzero().flatten().tolist()]
            raise TrainingError(
                f"step {step + 1}: L_{name.upper()} is not finite for pairs {where}; the weights "
                "are as they were"
            )
