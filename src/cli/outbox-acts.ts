import {
  ACTS_ON,
  actOnRows,
  chooseRows,
  isDone,
  lookAtRows,
  MOST_BULK_ROWS,
  type Answer,
  type RowAct,
  type RowFilter,
  type RowOrder,
} from '../app/outbox-admin.js';
import { systemClock } from '../runtime/clock.js';
import { createTextRedactor } from '../telemetry/redact.js';
import { confirm } from './confirm.js';
import { EXIT } from './context.js';
import { formatAnswers, formatKinds } from './outbox-text.js';
import type { FilterOptions } from './outbox.js';
import type { Cli } from './program.js';
import { printable, spokenCount } from './text.js';

/** The options of retry, discard and replay. */
export interface ActOptions extends FilterOptions {
  all?: boolean;
  dryRun?: boolean;
  yes?: boolean;
  reason?: string;
  rate?: number;
  asNew?: boolean;
  json?: boolean;
}

/** How often a long piece of work is told of. */
const PROGRESS_MS = 2_000;
const NAMES: Readonly<Record<RowAct, string>> = { retry: 'Retry', discard: 'Discard', replay: 'Replay' };

/** Rows that the operator names: a line for each, and exit code 1 if one was not to be changed. */
export async function actOnIds(cli: Cli, act: RowAct, ids: readonly string[], options: ActOptions): Promise<void> {
  const database = cli.configuration.database();
  if (options.dryRun) {
    const answers = await lookAtRows(database, act, ids);
    if (options.json) sayJson(cli, { act, dryRun: true, answers });
    else {
      say(cli, formatAnswers(answers));
      say(cli, `Nothing was changed. ${act} acts on rows that are ${ACTS_ON[act].join(', ')}.`);
    }
    return;
  }
  const rows = ids.length === 1 ? `message ${ids[0] ?? ''}` : `${spokenCount(ids.length)} messages`;
  const warning = warningOf(act, options);
  if (warning !== '') await confirm(cli, `${NAMES[act]} ${rows}?${warning}`, options.yes);
  const answered: Answer[] = [];
  await actOnRows(database, orderOf(act, ids, null, options), (answers) => {
    if (!options.json) say(cli, formatAnswers(answers));
    answered.push(...answers);
  });
  if (options.json) sayJson(cli, { act, dryRun: false, answers: answered });
  if (!answered.every((answer) => isDone(act, answer))) cli.exitCode = EXIT.failed;
}

/** Rows that filters choose: those of now, told in sums; what has changed by the time it is its turn is left alone. */
export async function actOnAll(cli: Cli, act: RowAct, filter: RowFilter, options: ActOptions): Promise<void> {
  const database = cli.configuration.database();
  const chosen = await chooseRows(database, act, filter, options.limit);
  if (options.json && (options.dryRun || chosen.ids.length === 0)) {
    sayJson(cli, { act, dryRun: options.dryRun === true, rows: chosen.ids.length, kinds: chosen.kinds, answers: {} });
    return;
  }
  if (chosen.ids.length === 0) {
    say(cli, act === 'replay' ? 'No published message of the history fits.' : 'No row of the outbox fits.');
    return;
  }
  const what = formatKinds(chosen);
  if (options.dryRun) {
    say(cli, `Would ${act} ${what}. Nothing was changed.`);
    return;
  }
  await confirm(cli, printable(`${NAMES[act]} ${what}?${warningOf(act, options)}`), options.yes);
  const states = act === 'replay' ? null : (filter.states ?? null);
  const sums = await inBatches(cli, orderOf(act, chosen.ids, states, options));
  if (options.json) sayJson(cli, { act, dryRun: false, rows: chosen.ids.length, kinds: chosen.kinds, answers: sums });
  else say(cli, `${sumsText(act, sums)}.`);
  if (chosen.ids.length === MOST_BULK_ROWS)
    cli.context.err('That is the most for one call; call it again for the rest.\n');
}

function warningOf(act: RowAct, { asNew }: ActOptions): string {
  if (act === 'discard') return ' Nobody will receive what is discarded.';
  if (act === 'replay' && asNew) return ' With new ids, every consumer applies them again.';
  return act === 'replay' ? ' Consumers receive them again, with the ids that they had.' : '';
}

function orderOf(act: RowAct, ids: readonly string[], states: RowOrder['states'], options: ActOptions): RowOrder {
  const { reason = null, rate: rowsPerSecond, asNew = false } = options;
  return { act, ids, states, reason, rowsPerSecond, asNew };
}

async function inBatches(cli: Cli, order: RowOrder): Promise<Record<string, number>> {
  const sums = new Map<string, number>();
  const total = spokenCount(order.ids.length);
  let seen = 0;
  let toldAt = systemClock.now();
  const count = (answers: readonly Answer[]): void => {
    // Copies have ids of their own; in sums they are one kind.
    for (const answer of answers) {
      const kind = isDone(order.act, answer) && order.act === 'replay' ? 'replayed' : answer.answer;
      sums.set(kind, (sums.get(kind) ?? 0) + 1);
    }
    seen += answers.length;
    if (systemClock.now() - toldAt < PROGRESS_MS) return;
    toldAt = systemClock.now();
    cli.context.err(`${spokenCount(seen)} of ${total}\n`);
  };
  try {
    await actOnRows(cli.configuration.database(), order, count);
  } catch (error) {
    cli.context.err(`${spokenCount(seen)} of ${total} rows were handled before it failed; they stay so.\n`);
    throw error;
  }
  return Object.fromEntries(sums);
}

/** `400 scheduled; skipped: 2 changed meanwhile`. */
function sumsText(act: RowAct, sums: Readonly<Record<string, number>>): string {
  const all = Object.entries(sums);
  const told = (kinds: typeof all): string => kinds.map(([answer, n]) => `${spokenCount(n)} ${answer}`).join(', ');
  const done = all.filter(([answer]) => isDone(act, { id: '', answer }));
  const others = all.filter((entry) => !done.includes(entry));
  return [told(done), others.length === 0 ? '' : `skipped: ${told(others)}`].filter((part) => part !== '').join('; ');
}

function say(cli: Cli, text: string): void {
  cli.context.out(`${printable(createTextRedactor()(text))}\n`);
}

function sayJson(cli: Cli, value: unknown): void {
  cli.context.out(`${JSON.stringify(value, null, 2)}\n`);
}
