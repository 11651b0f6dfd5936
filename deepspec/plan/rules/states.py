"""What computes the states of a cache, and what cannot be asked of it beside."""

from deepspec.errors import SpecError
from deepspec.plan.known import Known
from deepspec.plan.rules.seen import Seen


def engine(known: Known) -> Seen:
    """Hold what regeneration asks against an engine that gives states, where one endpoint has to do both."""
    cache, given = known.plan.cache, known.placement.endpoints
    if known.plan.dataset.cache is not None or known.plan.draft is not None:
        return Seen("none are made by this run")
    if cache.states == "transformers":
        return Seen("transformers, in this process")
    if known.plan.train.source != "cache":
        raise SpecError(
            f"cache.states={cache.states} and train.source={known.plan.train.source}, which computes states with "
            "transformers while it trains; leave out one"
        )
    answers = known.plan.dataset.answers is None and known.makes("regenerate")
    if given and answers and known.plan.regenerate.sampling.min_p:
        raise SpecError(
            f"regenerate.sampling.min_p={known.plan.regenerate.sampling.min_p:g} and cache.states={cache.states} with "
            "the same --endpoint: a vLLM that gives states ignores min_p; make the answers first (deepspec regenerate, "
            "with an engine of its own), or set regenerate.sampling.min_p=0"
        )
    return Seen(f"{cache.states}: {f'{len(given)} endpoints' if given else 'an engine that the run starts'}")
