/** What went wrong, as a sentence and what to do about it. */

import { h, userText } from "../dom.js";
import { sentence } from "../format.js";

/** @param {import("../api.js").Problem} problem */
export function problemBox(problem) {
  return h(
    "div.problem", { role: "alert" },
    h("strong", {}, problem.title ?? "Something went wrong"),
    userText(sentence(problem.detail || problem.message), "p"),
    problem.errors?.length > 0 && h("ul", {}, problem.errors.map(errorLine)),
    problem.hint && h("p.hint", {}, problem.hint),
  );
}

function errorLine({ pointer, detail }) {
  return h("li", {}, pointer && h("code", {}, pointer), " ", userText(detail));
}
