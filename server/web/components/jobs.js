/** Jobs: bounded work beside the training. */

import { get, path } from "../api.js";
import { isEnded } from "../catalog.js";
import { sentence } from "../format.js";
import { toast } from "./toast.js";

const EVERY_MILLISECONDS = 800;

/** Follows a job to its end. @returns {Promise<any>} JobView */
export async function waitFor(job, onStep = () => {}) {
  while (!isEnded(job.state)) {
    onStep(job);
    await new Promise((resolve) => setTimeout(resolve, EVERY_MILLISECONDS));
    job = await get(path("jobs", job.id)).catch((problem) => {
      if (!problem.mayPass) throw problem;
      return job; // the daemon is away for a moment; the job is not
    });
  }
  return job;
}

/** Says that a job was taken on, and later how it ended. */
export async function jobToast(job) {
  if (!job?.id) return;
  toast(`The ${job.kind} is ${job.state}${job.where ? ` (${job.where})` : ""}.`);
  const done = await waitFor(job).catch(() => null);
  if (!done) return;
  const where = done.result?.path ? `: ${done.result.path}` : "";
  toast(done.state === "completed" ? `The ${done.kind} is done${where}.` : `The ${done.kind} ${done.state}: ${sentence(done.message)}`, done.state === "completed" ? "good" : "bad");
}
