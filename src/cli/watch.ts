import { counted } from '../core/counted.js';
import { pause, type Clock } from '../runtime/clock.js';
import type { CliContext } from './context.js';

const ESCAPE = '\u001b[';
/** Another screen, no cursor, no line wrapped: what was on the terminal comes back at the end. */
const ENTER = `${ESCAPE}?1049h${ESCAPE}?25l${ESCAPE}?7l`;
const LEAVE = `${ESCAPE}?7h${ESCAPE}?25h${ESCAPE}?1049l`;
const HOME = `${ESCAPE}H`;
const CLEAR_REST_OF_LINE = `${ESCAPE}K`;
const CLEAR_BELOW = `${ESCAPE}J`;

/**
 * Shows what `paint` gives, again and again, until SIGINT, SIGTERM or SIGHUP: in place on a terminal, as blocks one
 * after the other elsewhere. The terminal is left as it was, also when `paint` throws.
 */
export async function repeat(
  context: Pick<CliContext, 'out' | 'outIsTerminal' | 'outRows' | 'onSignal'>,
  clock: Clock,
  intervalMs: number,
  paint: () => Promise<string>,
): Promise<void> {
  const stopping = new AbortController();
  context.onSignal(() => stopping.abort());
  const stopped = new Promise<undefined>((resolve) =>
    stopping.signal.addEventListener('abort', () => resolve(undefined), { once: true }),
  );
  if (context.outIsTerminal) context.out(ENTER);
  try {
    while (!stopping.signal.aborted) {
      // Whoever ends it does not wait for a server that does not answer.
      const text = await Promise.race([paint(), stopped]);
      if (text === undefined) return;
      context.out(context.outIsTerminal ? inPlace(text, context.outRows?.()) : `${text}\n`);
      await pause(clock, intervalMs, stopping.signal);
    }
  } finally {
    if (context.outIsTerminal) context.out(LEAVE);
  }
}

/** The text over the one before, line by line, so that nothing flickers; cut to the height of the terminal. */
function inPlace(text: string, rows: number | undefined): string {
  const lines = text.trimEnd().split('\n');
  const shown = rows === undefined ? lines : fitted(lines, Math.max(1, rows));
  return `${HOME}${shown.map((line) => `${line}${CLEAR_REST_OF_LINE}`).join('\n')}${CLEAR_BELOW}`;
}

/** At most so many lines. The last paragraph has the problems, for which one looks: what is before it is cut first. */
function fitted(lines: readonly string[], rows: number): readonly string[] {
  if (lines.length <= rows) return lines;
  const start = lines.lastIndexOf('') + 1;
  const last = lines.slice(start);
  const [before, after] =
    last.length + 2 <= rows
      ? [lines.slice(0, rows - last.length - 1), last]
      : [[...lines.slice(0, Math.min(1, start)), ...last].slice(0, rows - 1), []];
  const missing = lines.length - before.length - after.length;
  return [...before, `... ${counted(missing, 'line')} more than the terminal has room for`, ...after];
}
