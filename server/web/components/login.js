/** Turns the daemon's token into a cookie, which streams and downloads carry by themselves. */

import { Problem } from "../api.js";
import { h } from "../dom.js";
import * as prefs from "../prefs.js";
import { openDialog } from "./dialog.js";
import { problemBox } from "./problem.js";

/** Resolves when there is a session; asks again when the dialog is closed without one. */
export async function askForToken() {
  while (!(await openDialog("A token is needed", form)));
}

function form(close) {
  const refused = h("div");
  const token = h("input", { type: "password", name: "token", autocomplete: "current-password", required: true });
  return h("form.dialog-body", { onsubmit: submit },
    h("p", {}, "This daemon answers only with its token. It is in a file on the daemon's machine; ", h("code", {}, "traind token show-path"), " prints where."),
    h("label.field", {}, h("span", {}, "Token"), token),
    refused,
    h("div.dialog-foot", {}, h("button.primary", { type: "submit" }, "Sign in")));

  async function submit(event) {
    event.preventDefault();
    const response = await fetch("v1/session", {
      method: "POST",
      headers: { Authorization: `Bearer ${token.value.trim()}` },
    }).catch(() => null);
    if (response?.ok) {
      prefs.write("signed-in", "yes");
      dispatchEvent(new Event("traind:signed-in"));
      return close(true);
    }
    refused.replaceChildren(problemBox(await why(response)));
  }
}

async function why(response) {
  if (!response) return new Problem({ title: "The daemon does not answer" });
  const said = await response.json().catch(() => ({}));
  if (response.status === 401) return new Problem({ title: "That token was not accepted", detail: "Check that you copied the whole content of the file.", status: 401 });
  return new Problem({ status: response.status, title: "The daemon refused", ...said });
}
