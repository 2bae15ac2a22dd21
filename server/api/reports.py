"""Route of a run's report: JSON, Markdown, HTML."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.deps import Conf, Db, RunRef, StrictRoute, negotiate
from server.api.openapi import problems
from server.queries import run_views

router = APIRouter(prefix="/v1/runs/{run}", tags=["history"], route_class=StrictRoute)
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


@router.get(
    "/report",
    response_class=Response,
    responses=problems(404, 406)
    | {200: {"content": {kind: {} for kind in ("text/markdown", "text/html", "application/json")}}},
)
def show_report(run: RunRef, db: Db, conf: Conf, request: Request) -> Response:
    """Report of a run as Markdown, HTML or JSON, by Accept."""
    from server.reporting import report  # 1 MB of memory, at the first report

    kind = negotiate(request, "text/markdown", "text/html", "application/json")
    write = {
        "text/markdown": report.markdown,
        "text/html": report.html,
        "application/json": report.Report.model_dump_json,
    }[kind]
    price = conf.energy_price_per_kwh
    with db.read() as session:
        summary = report.summary(session, run_views.get_run(session, run), energy_price=price)
    content = write(summary)
    headers = {"Vary": "Accept", "Content-Security-Policy": REPORT_POLICY}
    return Response(content, headers=headers, media_type=kind)
