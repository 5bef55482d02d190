"""The judge: asks many questions side by side, keeps every answer as it comes, and asks nothing twice."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from crosspref.errors import RecipeError
from crosspref.run.progress import Reporter
from crosspref.suites.judge.costs import Costs
from crosspref.suites.judge.questions import Decoding, Question, read_answer
from crosspref.suites.judge.verdicts import Verdict, VerdictLog, key_of, messages_digest
from crosspref.suites.settings import JudgeSettings

Protocol = Literal["logprobs", "text"]


class Judge:
    """Asks one judge, or replays a file of verdicts and asks nobody.

    Args:
        settings: who judges and how.
        log: the verdicts that there are; new ones are appended unless ``replayed``.
        reporter: says what is asked, and shows progress.
        replayed: whether what the log lacks is counted, and not asked.

    Raises:
        RecipeError: no judge is named.
    """

    def __init__(self, settings: JudgeSettings, log: VerdictLog, reporter: Reporter, *, replayed: bool = False) -> None:
        if settings.model is None and replayed and len(log.judges()) == 1:
            settings = settings.model_copy(update={"model": log.judges()[0]})
        if settings.model is None:
            known = f" {log.path} has {', '.join(log.judges()) or 'none'}." if replayed else ""
            raise RecipeError(f"No judge is named: set judge.model to its name on its server.{known}")
        self.settings, self.log, self.reporter, self.replayed = settings, log, reporter, replayed
        self.name = settings.model
        self.costs = Costs(settings)
        self.costs.count_before(log.verdicts.values())
        self.asked = self.lacking = 0
        self.used: list[Verdict] = []
        if log.broken:
            what = "are counted as lacking" if replayed else "will be asked again"
            reporter.say(f"{log.path}: {log.broken} lines are cut or damaged; their verdicts {what}")

    def ask(self, questions: Sequence[Question], label: str = "judge") -> list[Verdict | None]:
        """Return a verdict for each question; None for what a replayed file lacks.

        Raises:
            BudgetError: going on would exceed the budget; what was judged is kept.
            ServerError: the judge gave no answer to a question, after all retries; what was judged is kept.
        """
        protocols = [self.known_protocol(question) for question in questions]
        open_ = {
            self.key(question, "text"): question
            for question, protocol in zip(questions, protocols, strict=True)
            if protocol is None
        }
        self.lacking += len(open_) if self.replayed else 0
        if open_ and self.replayed:
            self.reporter.say(
                f"{label}: {self.log.path} lacks the verdicts of {self.name} on {len(open_):,} of {len(questions):,} "
                f"questions, or they were asked in another way. It has {len(self.log.verdicts):,} verdicts of "
                f"{', '.join(self.log.judges())}."
            )
        elif open_:
            self._ask_open(list(open_.values()), label)
        found = [self._find(question) for question in questions]
        self.used += [verdict for verdict in found if verdict is not None]
        return found

    def describe(self) -> dict[str, Any]:
        """Return who judged and how, for results: of the verdicts that ``ask`` returned."""
        dates = sorted({verdict.date for verdict in self.used})
        return {
            "judge": self.name,
            "answered_as": sorted({verdict.answered_as for verdict in self.used if verdict.answered_as}),
            "decoding": [json.loads(text) for text in dict.fromkeys(json.dumps(v.decoding) for v in self.used)],
            "dates": [dates[0], dates[-1]] if dates else [],
            "verdicts": len(self.used),
            "failed": sum(verdict.verdict is None for verdict in self.used),
            "lacking": self.lacking,
        }

    # What is known

    def decoding(self, question: Question, protocol: Protocol) -> Decoding:
        """Return how the judge is to write: as the settings say, else as the question does."""
        own = question.by_logprobs if protocol == "logprobs" and question.by_logprobs else question.by_text
        asked = self.settings
        return Decoding(
            own.temperature if asked.temperature is None else asked.temperature,
            own.max_tokens if asked.max_tokens is None else asked.max_tokens,
        )

    def most_written(self, question: Question, protocol: Protocol) -> int:
        """Return how many tokens an answer may have at most, by whichever setting says the most."""
        given = (self.settings.request.get(name) for name in ("max_tokens", "max_completion_tokens"))
        return max([self.decoding(question, protocol).max_tokens, *(most for most in given if isinstance(most, int))])

    def request(self, question: Question, protocol: Protocol) -> dict[str, Any]:
        """Return what a request says beside the judge's name and the messages."""
        decoding = self.decoding(question, protocol)
        request: dict[str, Any] = {"temperature": decoding.temperature, "max_tokens": decoding.max_tokens}
        if protocol == "logprobs":
            request |= {"logprobs": True, "top_logprobs": self.settings.top_logprobs}
        return {name: value for name, value in (request | self.settings.request).items() if value is not None}

    def key(self, question: Question, protocol: Protocol) -> str:
        """Return the key of a question that is asked so."""
        return key_of(self.name, self.request(question, protocol), messages_digest(question.messages))

    def allowed(self, question: Question) -> list[Protocol]:
        """Return how a question may be asked, the best way first."""
        if question.labels is None or question.by_logprobs is None or self.settings.protocol == "text":
            return ["text"]
        return ["logprobs"] if self.settings.protocol == "logprobs" else ["logprobs", "text"]

    def known_protocol(self, question: Question) -> Protocol | None:
        """Return by which protocol there is a verdict, if there is one."""
        verdicts = self.log.verdicts
        return next((way for way in self.allowed(question) if self.key(question, way) in verdicts), None)

    def _find(self, question: Question) -> Verdict | None:
        protocol = self.known_protocol(question)
        if protocol is None:
            return None
        stored = self.log.verdicts[self.key(question, protocol)]
        answer = stored.text, stored.logprobs, stored.finish_reason, stored.failure
        value, failure = read_answer(question, *answer, by_logprobs=protocol == "logprobs")
        return replace(stored, verdict=value, failure=failure)

    # Asking

    def _ask_open(self, questions: list[Question], label: str) -> None:
        from crosspref.engines import find_engine
        from crosspref.suites.judge.asking import Asking

        ways = [[self.most_written(question, way) for way in self.allowed(question)] for question in questions]
        estimate = self.costs.estimate(questions, sum(map(max, ways)))
        self.reporter.say(f"{label}: {self.name} at {self.settings.url}: {estimate}")
        kept = (
            f"Every verdict is kept in {self.log.path}: give the same command again when the judge is well, or with "
            f"--judge replay {self.log.path} for the tables of what there is."
        )
        client = find_engine("client", "server")(self.settings.transport(), "judge", kept)
        try:
            with self.reporter.step(label, len(questions)) as meter:
                Asking(self, client, meter).run(questions)
        finally:
            client.close()
            self.log.close()
            spent = f"; {self.costs.spent:,.4f} spent on its verdicts so far" if self.settings.price_in else ""
            self.reporter.say(f"{label}: {self.asked:,} answers came and are kept in {self.log.path}{spent}")
