"""What computes the states of a cache and of training, and what cannot be asked of it beside."""

from deepspec.errors import EngineError, SpecError
from deepspec.plan.known import Known
from deepspec.plan.rules.seen import Seen


def engine(known: Known) -> Seen:
    """Hold what regeneration asks against an engine that gives states, where one endpoint has to do both."""
    cache, train, given = known.plan.cache, known.plan.train, known.placement.endpoints
    if known.plan.draft is not None or (known.plan.dataset.cache is not None and train.source != "engine"):
        return Seen("none are made by this run")
    if train.source == "engine":
        return _while_training(known)
    if cache.states == "transformers":
        return Seen("transformers, in this process")
    if train.source != "cache":
        raise SpecError(
            f"cache.states={cache.states} and train.source={train.source}, which computes states with transformers "
            "while it trains; leave out one"
        )
    if cache.while_answering:
        _check_pass(known)
    _check_answers(known, f"cache.states={cache.states}")
    with_answers = ", with the answers" if cache.while_answering else ""
    engines = f"{len(given)} endpoints" if given else "an engine that the run starts"
    return Seen(f"{cache.states}: {engines}{with_answers}")


def _while_training(known: Known) -> Seen:
    """See that there are engines, which run beside training: on cards, or machines, of their own."""
    given = known.placement.endpoints
    if not known.makes("train"):
        return Seen("engines, while the draft is trained")
    if not given:
        raise EngineError(
            "train.source=engine and no engine: they run beside training, on cards or machines of their own; start "
            "each with the line that `deepspec engine-args` prints and give --endpoint URL --model target"
        )
    _check_answers(known, "train.source=engine")
    return Seen(f"vllm, while the draft is trained: {len(given)} endpoints")


def _check_pass(known: Known) -> None:
    """See that there is one pass, over an engine that answers, and that its states are all that training asks for."""
    plan = known.plan
    if plan.dataset.answers is not None:
        raise SpecError(
            "cache.while_answering and answers from a file (--answers), which come without states; leave out one: "
            "without it an engine reads them once for their states"
        )
    if plan.regenerate.sampling.min_p and known.makes("regenerate"):
        raise SpecError(
            f"regenerate.sampling.min_p={plan.regenerate.sampling.min_p:g} and cache.while_answering: a vLLM that "
            "gives states ignores min_p; set regenerate.sampling.min_p=0, or cache.while_answering=false"
        )
    if plan.train.objective.looks_behind_the_end and known.makes("train"):
        raise SpecError(
            "train.objective.mask_alignment=deepspec, and convention=speculators, ask what the target says behind the "
            "last token of an answer, whose states do not come with it; leave them out, or set "
            "cache.while_answering=false"
        )


def _check_answers(known: Known, setting: str) -> None:
    answers = known.plan.dataset.cache is None and known.plan.dataset.answers is None and known.makes("regenerate")
    if known.placement.endpoints and answers and known.plan.regenerate.sampling.min_p:
        raise SpecError(
            f"regenerate.sampling.min_p={known.plan.regenerate.sampling.min_p:g} and {setting} with the same "
            "--endpoint: a vLLM that gives states ignores min_p; make the answers first (deepspec regenerate, with an "
            "engine of its own), or set regenerate.sampling.min_p=0"
        )
