"""X-AlpacaEval: each answer of a model against a baseline's, by a judge, per language."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from crosspref.data.items import MODEL_COLUMNS, Item, Problems, id_of, join, join_answers, read_items
from crosspref.data.records import Prompt
from crosspref.data.rows import Row, is_unicode
from crosspref.data.sources import TEXT_COLUMNS, first_of, read_languages
from crosspref.errors import DataError, RecipeError
from crosspref.reports.table import Report
from crosspref.suites.judge.judge import Judge
from crosspref.suites.judge.questions import LACKING, Template
from crosspref.suites.work import Evaluation, folder_name
from crosspref.suites.xalpaca.files import ANNOTATIONS, OUTPUTS, read_controls, read_preference, write_json
from crosspref.suites.xalpaca.prompt import OWN, ask_about, preference
from crosspref.suites.xalpaca.results import NAME, Baseline, Contest, write

Items = Mapping[str, list[Item]]
"""The items of each language."""


def evaluate(work: Evaluation) -> list[Report]:
    """Run the suite; see ``suites``. What is wrong with settings, prompt and tables shows before a model answers.

    Raises:
        RecipeError: a file is not named.
        DataError: nothing can be judged.
    """
    problems: dict[str, Problems] = {}
    controls = read_controls(work.settings.xalpaca)
    template = Template.read(work.settings.xalpaca.prompt, "xalpaca.prompt", OWN)
    items = _items(work, problems)
    wanted = {language: every[: work.settings.xalpaca.limit] for language, every in items.items()}
    if work.annotations is not None:
        contests = _from_annotations(work, items, wanted, problems)
    else:
        judge, baselines = work.judge, _baselines(work, items, wanted, problems)
        answered = _outputs(work, items, wanted, list(baselines), problems)
        contests = [
            Contest(model, language, wanted[language], baseline, outputs[language], judge.name)
            for model, outputs in answered.items()
            for language, baseline in baselines.items()
        ]
        _ask(judge, contests, template)
    if not any(contest.preferences for contest in contests):
        raise DataError("X-AlpacaEval: no item has an answer of a model, one of the baseline, and a verdict.")
    for contest in contests:
        _write_annotations(work, contest)
    return write(work, contests, problems, controls, template)


def _items(work: Evaluation, problems: dict[str, Problems]) -> dict[str, list[Item]]:
    settings = work.settings.xalpaca
    if settings.items is None:
        raise RecipeError("The suite xalpaca needs its instructions: set xalpaca.items to their file or directory.")
    items = {}
    for language, rows in read_languages(settings.items, "xalpaca.items", work.languages, OUTPUTS).items():
        items[language] = read_items(rows, problems.setdefault(language, Problems()), "xalpaca.items")
        if items[language] and not items[language][0].named:
            work.reporter.say(f"xalpaca {language}: the items have no ids, so their positions are taken, from 1.")
    for language in work.languages or ():
        if not items.get(language):
            problems.setdefault(language, Problems())["language without items"] = 1
            work.reporter.say(f"xalpaca {language}: there are no items, so nothing is judged in this language.")
    if not any(items.values()):
        raise DataError(f"xalpaca.items: {settings.items} has no item in the languages that are wanted.")
    return {language: every for language, every in items.items() if every}


def _baselines(work: Evaluation, items: Items, wanted: Items, problems: Mapping[str, Problems]) -> dict[str, Baseline]:
    """Return the baseline's answers to all items, of which perhaps only some are wanted."""
    source = work.settings.xalpaca.baseline
    if source is None:
        raise RecipeError("The suite xalpaca needs a baseline: set xalpaca.baseline to its answers.")
    rows = read_languages(source, "xalpaca.baseline", list(items), OUTPUTS)
    baselines = {}
    for language, every in items.items():
        own = rows.get(language, [])
        _require_one_model(own)
        texts, joined = join_answers(own, every, "xalpaca.baseline", problems[language])
        problems[language]["answers of the baseline that are not text"] += len(joined) - len(texts)
        if not texts:
            problems[language]["language without baseline"] = 1
            why = f"none of its {len(own)} rows answers an item" if own else "it has no rows"
            work.reporter.say(
                f"xalpaca {language}: the baseline has no answers ({why}), so nothing is judged in this language."
            )
            continue
        there, total = sum(item.item_id in texts for item in wanted[language]), len(wanted[language])
        if there < total:
            work.reporter.say(f"xalpaca {language}: the baseline answers {there} of {total} items.")
        baselines[language] = Baseline(_generator(joined.values(), *MODEL_COLUMNS), texts)
    return baselines


def _require_one_model(rows: Sequence[Row]) -> None:
    """Raise a DataError if two models have an answer to the same item: no baseline is meant then."""
    models: dict[object, str] = {}
    for row in rows:
        model, item = first_of(row, MODEL_COLUMNS), id_of(row) or first_of(row, TEXT_COLUMNS)
        if model is not None and models.setdefault(item, str(model)) != str(model):
            wrong = f"it is an answer of {model} to an item that {models[item]} has answered, too"
            raise row.error(wrong, "Give the answers of one model as xalpaca.baseline.")


def _generator(rows: Iterable[Row], *columns: str) -> str:
    names = dict.fromkeys(str(first_of(row, columns) or "") for row in rows)
    return ", ".join(filter(None, names)) or "baseline"


def _outputs(
    work: Evaluation, items: Items, wanted: Items, languages: Sequence[str], problems: Mapping[str, Problems]
) -> dict[str, dict[str, dict[str, str]]]:
    """Return the answers by model, language and item id: those that exist already, or else new ones."""
    if work.given is not None:
        return {
            given.model: {tag: given.answers(tag, items[tag], problems[tag], work.reporter) for tag in languages}
            for given in work.given_answers(languages)
        }
    prompts = [Prompt(item.item_id, language, item.instruction) for language in languages for item in wanted[language]]
    by_model: dict[str, dict[str, dict[str, str]]] = {}
    for candidate in work.target.models:
        outputs = by_model[candidate.name] = {language: {} for language in languages}
        for row in work.answers(NAME, candidate, prompts):
            outputs[row.language][row.prompt_id] = row.text
    return by_model


def _ask(judge: Judge, contests: Sequence[Contest], template: Template) -> None:
    """Ask about every model and language at once, so that the price estimate covers everything."""
    answered = [(contest, item) for contest in contests for item in contest.answered()]
    questions = [
        ask_about(item.instruction, one.baseline.outputs[item.item_id], one.outputs[item.item_id], template)
        for one, item in answered
    ]
    for (contest, item), verdict in zip(answered, judge.ask(questions, NAME), strict=True):
        contest.verdicts[item.item_id] = verdict
        if verdict is None:
            contest.failures[LACKING] += 1
            continue
        contest.date = max(contest.date, verdict.date)
        if verdict.verdict is None:
            contest.failures[str(verdict.failure)] += 1
            contest.preferences[item.item_id] = None
        else:
            contest.preferences[item.item_id] = preference(item.instruction, verdict.verdict)


def _from_annotations(work: Evaluation, items: Items, wanted: Items, problems: Mapping[str, Problems]) -> list[Contest]:
    """Return the contests in annotations made elsewhere, one model for each generator."""
    contests = []
    for language, rows in read_languages(str(work.annotations), "--annotations", list(items), ANNOTATIONS).items():
        by_model: dict[str, list[Row]] = {}
        for row in rows:
            by_model.setdefault(str(row.values.get("generator_2", work.target.models[0].name)), []).append(row)
        for model, annotations in by_model.items():
            joined = join(annotations, items[language], "preference", problems[language])
            texts = {key: row.values for key, row in joined.items() if _is_whole(row)}
            problems[language]["annotations without outputs"] += len(joined) - len(texts)
            outputs = [{key: str(row[name]) for key, row in texts.items()} for name in ("output_1", "output_2")]
            baseline = Baseline(_generator(annotations, "generator_1"), outputs[0])
            judge = _generator(annotations, "annotator")
            contest = Contest(model, language, wanted[language], baseline, outputs[1], judge)
            contest.preferences = {key: read_preference(row["preference"]) for key, row in texts.items()}
            contest.failures["no preference"] = sum(value is None for value in contest.preferences.values())
            contest.date = max((str(row.values.get("date") or "") for row in annotations), default="")
            contests.append(contest)
    judged = {contest.language for contest in contests}
    for language in [language for language in wanted if language not in judged]:
        problems[language]["language without annotations"] = 1
        work.reporter.say(f"xalpaca {language}: there are no annotations in this language.")
    return contests


def _is_whole(row: Row) -> bool:
    texts = (row.values.get(name) for name in ("output_1", "output_2"))
    return all(isinstance(text, str) and is_unicode(text) for text in texts)


def _write_annotations(work: Evaluation, contest: Contest) -> None:
    """Write a model's outputs and annotations in one language in alpaca_eval's format."""
    folder = work.target.folder / NAME / folder_name(contest.model) / contest.language
    about = {"dataset": NAME, "language": contest.language}
    outputs = [
        {"id": item.item_id, "instruction": item.instruction, "output": contest.outputs[item.item_id],
         "generator": contest.model, **about}
        for item in contest.items
        if item.item_id in contest.outputs
    ]  # fmt: skip
    annotations = []
    for item in contest.answered():
        if item.item_id in contest.preferences:
            verdict = contest.verdicts.get(item.item_id)
            kept = ("text", "logprobs", "failure", "decoding", "key")
            annotations.append(
                {
                    "id": item.item_id,
                    "instruction": item.instruction,
                    "output_1": contest.baseline.outputs[item.item_id],
                    "generator_1": contest.baseline.name,
                    **about,
                    "output_2": contest.outputs[item.item_id],
                    "generator_2": contest.model,
                    "annotator": contest.annotator,
                    "preference": contest.preferences[item.item_id],
                    "raw_completion": verdict and {k: v for k, v in asdict(verdict).items() if k in kept},
                    "date": verdict.date if verdict else contest.date,
                }
            )
    write_json(folder / "model_outputs.json", outputs)
    write_json(folder / "annotations.json", annotations)
