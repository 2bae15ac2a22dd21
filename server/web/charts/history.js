/**
 * What a page knows of a run's history, in columns: taken as a whole for a range, and then only what
 * is new. Bins never mix: the end is asked for in the bins that are already there.
 *
 * @typedef {{mean: (number|null)[], min: (number|null)[]|null, max: (number|null)[]|null}} Column
 */

const MORE_POINTS = 1.5; // than were asked for: then the bins are made anew

export function createHistory() {
  /** @type {{steps: number[], seconds: number[], columns: Map<string, Column>, segments: any[],
   *   binSteps: number, rawPoints: number, most: number, planned: any}} */
  const known = { steps: [], seconds: [], columns: new Map(), segments: [], binSteps: 1, rawPoints: 0, most: 0, planned: null };

  /** A whole range. @param {any} answer MetricColumns @param {number} most points that were asked for */
  function take(answer, most) {
    known.steps = answer.steps;
    known.seconds = answer.unix_seconds;
    known.columns = new Map(answer.series.map(({ key, mean, min, max }) => [key, { mean, min, max }]));
    Object.assign(known, { segments: answer.segments, binSteps: answer.bin_steps, rawPoints: answer.raw_points, planned: answer.planned ?? null, most });
  }

  /** What came since: `answer` begins at the step that `tailQuery` named. False: ask for all of it anew. */
  function takeTail(answer, fromStep) {
    const { steps } = known;
    const isSame = answer.bin_steps === known.binSteps && answer.segments.every((s) => s.attempt === known.segments.at(-1)?.attempt);
    if (!isSame || steps.length + answer.steps.length > known.most * MORE_POINTS) return false;
    let keep = steps.length;
    while (keep > 0 && steps[keep - 1] >= fromStep) keep -= 1;
    known.steps = [...steps.slice(0, keep), ...answer.steps];
    known.seconds = [...known.seconds.slice(0, keep), ...answer.unix_seconds];
    for (const { key, mean, min, max } of answer.series) {
      const column = known.columns.get(key);
      if (!column) return false;
      column.mean = [...column.mean.slice(0, keep), ...mean];
      column.min = column.min && min && [...column.min.slice(0, keep), ...min];
      column.max = column.max && max && [...column.max.slice(0, keep), ...max];
    }
    const last = answer.segments.at(-1);
    if (last) known.segments.at(-1).to_step = last.to_step;
    known.rawPoints = Math.max(known.rawPoints, known.segments.reduce((sum, s) => sum + s.to_step - s.from_step, 0));
    return true;
  }

  /** Where the last bin begins: it may have grown. */
  function tailQuery() {
    const last = known.steps.at(-1);
    if (last === undefined) return null;
    return { from_step: Math.floor(last / known.binSteps) * known.binSteps, bin_steps: known.binSteps };
  }

  /** Is the last of `numSteps` steps here already? Then nothing is new. */
  const reaches = (numSteps) => known.steps.at(-1) === numSteps - 1;

  return { known, take, takeTail, tailQuery, reaches };
}

/**
 * How many points are drawn. The mean of a few steps is noisier than that of a whole bin, which
 * looks like a spike at the right edge: a last bin less than half full waits.
 */
export function drawnLength({ steps, binSteps }, isActive) {
  const last = steps.at(-1);
  if (!isActive || last === undefined || binSteps === 1 || steps.length < 3) return steps.length;
  return (last % binSteps) + 1 < binSteps / 2 ? steps.length - 1 : steps.length;
}
