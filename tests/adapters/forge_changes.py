"""What changes on a GitHub when requests are opened, labelled and armed; beside the small `gh`.

Standard library alone, as `forge_graphql`.
"""

from __future__ import annotations

import re
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _create(body: dict[str, Any], forge: dict[str, Any]) -> dict[str, Any] | str:
    """Open a request as GitHub does; a text is why it does not."""
    import subprocess

    branch, base = body["head"], body["base"]
    heads = {}
    for name in (branch, base):
        told = subprocess.run(
            ["git", "--git-dir", forge["origin"], "rev-parse", "--verify", f"refs/heads/{name}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if told.returncode != 0:
            return f"PullRequest {'head' if name == branch else 'base'} invalid"
        heads[name] = told.stdout.strip()
    if any(one["headRefName"] == branch and one["state"] == "OPEN" for one in forge["requests"]):
        return f"A pull request already exists for acme:{branch}."
    beyond = subprocess.run(
        ["git", "--git-dir", forge["origin"], "rev-list", f"{heads[base]}..{heads[branch]}"],
        capture_output=True,
        check=True,
    )
    if not beyond.stdout:
        return f"No commits between {base} and {branch}"
    if body["draft"] and not forge["allows_drafts"]:
        return "Draft pull requests are not supported in this repository."
    number = max([0, *(one["number"] for one in forge["requests"])]) + 1
    one = {
        "number": number,
        "state": "OPEN",
        "createdAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "headRefOid": heads[branch],
        "headRefName": branch,
        "isCrossRepository": False,
        "isDraft": body["draft"],
        "url": f"https://github.com/{forge['repository']}/pull/{number}",
        "mergedAt": None,
        "reviewDecision": None,
        "mergeStateStatus": "UNKNOWN",
        "mergeQueueEntry": None,
        "autoMergeRequest": None,
        "checks": None,
        "tip": heads[branch],
        "title": body["title"],
        "body": body["body"],
        "base": base,
        "labels": [],
        "armed": "",
    }
    forge["requests"].append(one)
    return {"number": number, "html_url": one["url"], "node_id": f"PR_{number}"}


def _find(body: dict[str, Any], forge: dict[str, Any]) -> dict[str, Any]:
    number = body["variables"]["number"]
    one = next((one for one in forge["requests"] if one["number"] == number), None)
    if one is None:
        message = f"Could not resolve to a PullRequest with the number of {number}."
        return {"data": {"repository": {"pullRequest": None}}, "errors": [{"message": message}]}
    armed = {"enabledAt": one["createdAt"]} if one.get("armed") else None
    told = {"id": f"PR_{number}", "state": one["state"], "autoMergeRequest": armed}
    return {"data": {"repository": {"pullRequest": told}}}


def _arm(body: dict[str, Any], forge: dict[str, Any]) -> dict[str, Any]:
    if not forge["allows_auto_merge"]:
        message = "Auto merge is not allowed for this repository"
        return {"data": {"enablePullRequestAutoMerge": None}, "errors": [{"message": message}]}
    for one in forge["requests"]:
        if f"PR_{one['number']}" == body["variables"]["id"]:
            one["armed"] = body["variables"]["method"]
            if forge["merges_when_armed"]:
                _merge(one, forge["origin"])
    return {"data": {"enablePullRequestAutoMerge": {"pullRequest": {"number": 1}}}}


def _merge(one: dict[str, Any], origin: str) -> None:
    """Merge a request into its base, as a forge does whose checks are green at once."""
    import subprocess

    def git(*args: str) -> str:
        told = subprocess.run(
            ["git", "--git-dir", origin, "-c", "user.name=F", "-c", "user.email=f@x", *args],
            capture_output=True,
            check=True,
            text=True,
        )
        return told.stdout.strip()

    base, head = f"refs/heads/{one['base']}", one["headRefOid"]
    tree = git("merge-tree", "--write-tree", base, head).splitlines()[0]
    commit = git("commit-tree", "-p", base, "-p", head, "-m", one["title"], tree)
    git("update-ref", base, commit)
    one["state"] = "MERGED"


def kind_of(argv: list[str], body: dict[str, Any]) -> str:
    """Return which call this is; empty for one that this small gh does not know."""
    if argv[:2] == ["api", "graphql"]:
        query = body["query"]
        if "enablePullRequestAutoMerge" in query:
            return "arm"
        is_one = "pullRequest(number" in query and "contexts" not in query
        return "find" if is_one else "look"
    if argv[:3] == ["api", "--method", "POST"]:
        place = re.fullmatch(r"repos/[\w.-]+/[\w.-]+/(pulls|issues/\d+/labels)", argv[3])
        if place is not None:
            return "create" if place[1] == "pulls" else "label"
    return ""


def carried_out(
    kind: str, argv: list[str], body: dict[str, Any], forge: dict[str, Any]
) -> dict[str, Any] | str:
    match kind:
        case "create":
            return _create(body, forge)
        case "label":
            number = int(argv[3].split("/")[4])
            for one in forge["requests"]:
                if one["number"] == number:
                    one["labels"] = sorted({*one["labels"], *body["labels"]})
            return {"labels": body["labels"]}
        case "find":
            return _find(body, forge)
        case "arm":
            return _arm(body, forge)
        case _:
            raise ValueError(kind)
