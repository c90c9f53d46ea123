"""slime's and miles' remote reward model: `--rm-type remote_rm --rm-url http://HOST:8000/rm`."""

from fastapi import APIRouter

from service.api.dependencies import ERRORS
from service.dialects.bodies import AnyMessages, DialectBody, Label, PolicyText, QueryLabelOptions
from service.dialects.context import Context
from tinyrm.markup import parse_prompt, strip_special

router = APIRouter(tags=["slime"])


class SampleRequest(DialectBody):
    """One sample.

    label: a reference response, if there is one.
    """

    prompt: PolicyText | AnyMessages
    response: PolicyText
    label: Label = None


@router.post("/rm", responses={**ERRORS})
async def rm(body: SampleRequest, options: QueryLabelOptions, context: Context) -> float:
    """The reward as a plain number, compared with the label, alone, or within the sample's cohort."""
    prompt, response = parse_prompt(body.prompt), strip_special(body.response)
    return (await context.score_sample(options, prompt, response, body.label)).reward
