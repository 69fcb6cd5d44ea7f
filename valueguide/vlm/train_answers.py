"""Learning to answer: whole answers to real prompts, by teacher forcing, the loss on answer tokens only.

The vision tower is frozen and its output kept on disk. A read-out, thrown away later, says at each picture's
last token how far along it is, so that the answer has something to look up; at first it alone is taught.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from valueguide.progress.parse import write_answer
from valueguide.progress.request import Answer
from valueguide.vlm.small_vlm import number_tokens
from valueguide.vlm.train_data import Question, Questions
from valueguide.vlm.train_phase import Phase, VlmTrainSettings, hash_seed

#: Standard deviation (percentage points) of the distribution that teaches a value, so that 79 is nearly 80.
_SIGMA = 1.5
#: Of the batches; endpoints are asked for JSON, models in this process for lines.
_JSON_SHARE = 0.15
#: Of the answers, in which earlier percentages are no help for later ones.
_FORGOTTEN = 0.8
#: Of the loss that says where to look, see AnswerPhase._reading_look and _writing_look.
_LOOK_WEIGHT = 0.3
#: Share of the updates with answers after which questions have up to the most frames.
_CURRICULUM = 0.4


class AnswerPhase(Phase):
    """Answering: trains connector and language model on whole answers.

    encode: tokens of a prompt as the backend that will ask makes them (TransformersBackend.encode).
    features: see tower_outputs.
    """

    name = "answers"

    def __init__(
        self,
        model: Any,
        encode: Any,
        tokenizer: Any,
        questions: Questions,
        features: NDArray[np.float16],
        settings: VlmTrainSettings,
    ) -> None:
        self._model, self._encode, self._tokenizer = model, encode, tokenizer
        self._questions, self._features, self._settings = questions, features, settings
        self._numbers = torch.tensor(number_tokens(tokenizer))
        self._prompts: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        model.model.vision_model.requires_grad_(False)
        model.model.text_model.set_attn_implementation("eager")  # others do not show where they look
        torch.manual_seed(hash_seed(settings.seed, "hint"))
        hidden = model.config.text_config.hidden_size
        #: After this layer; those above it look up what it has found.
        self._hinted = max(1, model.config.text_config.num_hidden_layers * 3 // 5)
        modules = {
            "connector": model.model.connector,
            "text": model.model.text_model,
            "hint": nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 1)),
        }
        # The connector comes trained. It has thousands of inputs: at the others' rate it forgets.
        rates = {"connector": settings.connector_rate, "text": settings.rate, "hint": settings.rate}
        super().__init__(modules, settings.steps, rates, settings.weight_decay, settings.seed)

    def update(self) -> dict[str, float]:
        """One step; the losses before it."""
        rng = self.rng()
        answer: Answer = "json" if rng.random() < _JSON_SHARE else "lines"
        few, many = self._settings.frames
        begin = self._settings.read_steps
        if self.step < begin:  # nothing can be looked up before there is something to find
            losses = self.reading_loss(self._questions.batch(rng, self._settings.batch, answer, many))
        else:
            # Few frames first: which value belongs to which picture is learned where there are few of them.
            done = (self.step + 1 - begin) / (_CURRICULUM * (self.steps - begin))
            most = few + round((many - few) * min(1.0, done))
            batch = self._questions.batch(rng, self._settings.batch, answer, most)
            losses = self.losses(batch, training=True)
        self.descend(torch.stack(list(losses.values())).sum())
        return {name: float(loss.detach()) for name, loss in losses.items()}

    @torch.no_grad()
    def held_out(self, questions: Questions, batches: int = 4) -> dict[str, float]:
        """Mean losses on the same questions at every call."""
        found = []
        for i in range(batches):
            rng = np.random.default_rng(hash_seed("held out", i))
            answer: Answer = "json" if i == 0 else "lines"
            batch = questions.batch(rng, self._settings.batch, answer, self._settings.frames[1])
            found.append(self.losses(batch, training=False))
        return {name: float(torch.stack([f[name] for f in found]).mean()) for name in found[0]}

    def losses(self, batch: Sequence[Question], training: bool) -> dict[str, Tensor]:
        """value: cross-entropy of the percentages against a narrow distribution around what is true, less
        that distribution's entropy. form: of all other tokens of the answers. hint: of the read-out."""
        prompts, mentions = zip(*(self._prompt_tokens(question) for question in batch), strict=True)
        answers = torch.stack([self._answer_tokens(question) for question in batch])
        given = self._forget(answers) if training else answers
        ids, mask = _pad_left([torch.cat(pair) for pair in zip(prompts, given, strict=True)])
        out = self._run(ids, mask, batch, training, keep=answers.shape[1] + 1)
        values = torch.from_numpy(np.stack([question.values for question in batch]))
        places = self._places(ids, batch)
        logits = out.logits[:, :-1].float()
        mentions = _align(mentions, ids.shape[1], answers.shape[1])
        reading = self._reading_look(ids, mentions, places, out.attentions)
        writing = self._writing_look(ids, places, answers.shape[1], out.attentions)
        return {
            "hint": self._hint_loss(places, out, values),
            "look": _LOOK_WEIGHT * torch.cat([reading, writing]).mean(),
            **self._text_losses(logits, answers, values),
        }

    def reading_loss(self, batch: Sequence[Question]) -> dict[str, Tensor]:
        """hint and look, from the prompts alone."""
        prompts, mentions = zip(*(self._prompt_tokens(question) for question in batch), strict=True)
        ids, mask = _pad_left(prompts)
        out = self._run(ids, mask, batch, training=True, keep=1)
        values = torch.from_numpy(np.stack([question.values for question in batch]))
        places = self._places(ids, batch)
        look = self._reading_look(ids, _align(mentions, ids.shape[1], 0), places, out.attentions)
        return {"hint": self._hint_loss(places, out, values), "look": _LOOK_WEIGHT * look.mean()}

    def _run(self, ids: Tensor, mask: Tensor, batch: Sequence[Question], training: bool, keep: int) -> Any:
        """The model's output for tokens (B, n) and the questions' pictures, logits of the last `keep`."""
        rows = np.stack([question.rows for question in batch])
        seen = torch.from_numpy(self._features[rows.ravel()].astype(np.float32))
        if training:
            seen = F.dropout(seen, self._settings.dropout)
        with torch.autocast("cpu", torch.bfloat16):
            return self._model(
                input_ids=ids,
                attention_mask=mask,
                image_hidden_states=self.modules["connector"](seen),
                logits_to_keep=keep,
                output_hidden_states=True,
                output_attentions=True,
                use_cache=False,
            )

    def _places(self, ids: Tensor, batch: Sequence[Question]) -> Tensor:
        """int64 (B, asked, T): where the tokens of each picture but the anchor stand."""
        places = (ids == self._model.config.image_token_id).nonzero()[:, 1]
        return places.view(len(batch), len(batch[0].rows), -1)[:, 1:]

    def _is_value(self, answers: Tensor) -> Tensor:
        """bool, where the percentages stand: frame number, value, frame number, value, …"""
        is_number = torch.isin(answers, self._numbers)
        return is_number & (is_number.cumsum(dim=1) % 2 == 0)

    def _forget(self, answers: Tensor) -> Tensor:
        """Answers (B, n) as they are read while they are written: in most, the percentages are drawn anew.

        Else the values before tell so much about the next one that nothing but them is looked at, and an
        answer that begins with 0 % goes on with it.
        """
        drawn = self._numbers[torch.randint(len(self._numbers), answers.shape)]
        forgotten = torch.rand(len(answers), 1) < _FORGOTTEN
        return torch.where(self._is_value(answers) & forgotten, drawn, answers)

    def _text_losses(self, logits: Tensor, answers: Tensor, values: Tensor) -> dict[str, Tensor]:
        logs = torch.log_softmax(logits, dim=-1)
        is_value = self._is_value(answers)
        found = logs[is_value].view(*values.shape, -1)[..., self._numbers]
        wanted = around(values)
        entropy = -torch.special.xlogy(wanted, wanted).sum(-1)
        form = -logs.gather(2, answers[..., None]).squeeze(2)[~is_value]
        return {"value": (-(wanted * found).sum(-1) - entropy).mean(), "form": form.mean()}

    def _hint_loss(self, places: Tensor, out: Any, values: Tensor) -> Tensor:
        """Of the read-out at each picture's last token. places: (B, pictures, T), of all its tokens."""
        hidden = out.hidden_states[self._hinted].float()
        last = places[:, :, -1:].expand(-1, -1, hidden.shape[2])
        hints = self.modules["hint"](hidden.gather(1, last)).squeeze(2)
        return F.binary_cross_entropy_with_logits(hints, values)

    def _reading_look(
        self, ids: Tensor, mentions: Tensor, places: Tensor, attentions: Sequence[Tensor]
    ) -> Tensor:
        """(3, B, pictures): how little three heads of the first layer look from a picture at its number, at
        the instruction, and at the anchor. mentions: bool (B, n), where the instruction stands.

        Small models find out by themselves, too, but only after thousands of updates.
        """
        heads, shown = attentions[0].float(), places[:, :, -1]
        row = torch.arange(len(ids))[:, None]
        anchor = (ids == self._model.config.image_token_id).int().argmax(dim=1)[:, None, None]
        anchors = anchor + torch.arange(places.shape[2])
        tagged = heads[row, 0, shown, self._last_number(ids)[row, shown]]
        told = (heads[row, 1, shown] * mentions[:, None]).sum(dim=2)
        compared = heads[row[..., None], 2, shown[..., None], anchors].sum(dim=2)
        return -torch.stack([tagged, told, compared]).clamp_min(1e-6).log()

    def _writing_look(self, ids: Tensor, places: Tensor, answer: int, attentions: Sequence[Tensor]) -> Tensor:
        """(2, B, pictures): how little one head of the first layer looks from where a value is written at the
        number before it, and one head further up at the picture of that number."""
        row = torch.arange(len(ids))[:, None]
        begin = ids.shape[1] - answer
        written = torch.isin(ids, self._numbers) & (torch.arange(ids.shape[1]) >= begin)
        value = (written & (written.cumsum(dim=1) % 2 == 0)).nonzero()[:, 1].view(places.shape[:2])
        asked = value - 1
        tagged = attentions[0][:, 0].float()[row, asked, self._last_number(ids)[row, asked]]
        found = attentions[self._hinted][:, 0].float()[row[..., None], asked[..., None], places].sum(dim=2)
        return -torch.stack([tagged, found]).clamp_min(1e-6).log()

    def _last_number(self, ids: Tensor) -> Tensor:
        """int64 (B, n): where the last number up to each token stands."""
        number = torch.isin(ids, self._numbers)
        return torch.where(number, torch.arange(ids.shape[1]), 0).cummax(dim=1).values

    def _prompt_tokens(self, question: Question) -> tuple[Tensor, Tensor]:
        """As the backend makes them, int64 (n,), and bool (n,), where the instruction stands first.

        They depend on the text and the number of pictures only.
        """
        prompt = question.prompt
        key = (prompt.version, prompt.asked, prompt.parts[0])
        if key not in self._prompts:
            ids = self._encode(prompt)["input_ids"][0]
            self._prompts[key] = (
                ids,
                mentioned(self._tokenizer, ids, str(prompt.parts[0]), question.instruction),
            )
        return self._prompts[key]

    def _answer_tokens(self, question: Question) -> Tensor:
        text = write_answer(question.percentages, question.prompt.answer)
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        return torch.tensor([*tokens, self._tokenizer.eos_token_id])


def around(values: Tensor) -> Tensor:
    """Distributions (..., 101) over 0 … 100 % around values (...) in [0, 1]; all of it at 100 % for 1.

    A value just below 1 keeps away from 100 %, which is said of a task that is done and of no other.
    """
    bins = torch.arange(101, dtype=torch.float32)
    density = torch.exp(-0.5 * ((bins - 100 * values[..., None]) / _SIGMA) ** 2)
    done = (values >= 1)[..., None]
    density = torch.where((bins == 100) == done, density, 0.0)
    return density / density.sum(-1, keepdim=True)


def mentioned(tokenizer: Any, ids: Tensor, text: str, instruction: str) -> Tensor:
    """bool (n,): which tokens `ids` (n,) write the `instruction` that ends `text`, a part of what they write.

    Raises ValueError when they do not write `text`.
    """
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    windows = ids.unfold(0, len(found["input_ids"]), 1)
    starts = (windows == torch.tensor(found["input_ids"])).all(dim=1).nonzero()[:, 0]
    if not len(starts):
        raise ValueError(f"expected tokens that write {text[-60:]!r}, found none")
    begin = text.rindex(instruction)
    end = begin + len(instruction)
    mask = torch.zeros(len(ids), dtype=torch.bool)
    for i, (first, last) in enumerate(found["offset_mapping"]):
        mask[starts[0] + i] = first < end and last > begin
    return mask


def _align(masks: Sequence[Tensor], length: int, behind: int) -> Tensor:
    """bool (B, length): masks of prompts that end `behind` tokens before the end."""
    out = torch.zeros(len(masks), length, dtype=torch.bool)
    for row, mask in zip(out, masks, strict=True):
        row[length - behind - len(mask) : length - behind] = mask
    return out


def _pad_left(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens and mask int64 (B, longest): answers, equally long, end together. Padding is never looked at."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        ids[i, longest - len(sequence) :] = sequence
        mask[i, longest - len(sequence) :] = 1
    return ids, mask
