import { MOST_BULK_ROWS, type Answer, type RowSnapshot } from '../app/outbox-admin.js';
import { systemClock } from '../runtime/clock.js';
import { createTextRedactor } from '../telemetry/redact.js';
import { confirm } from './confirm.js';
import { EXIT } from './context.js';
import { formatAnswers, formatKinds } from './outbox-text.js';
import type { Cli } from './program.js';
import { printable, spokenCount } from './text.js';

/** The options of every act on rows. */
export interface BulkOptions {
  all?: boolean;
  dryRun?: boolean;
  yes?: boolean;
  reason?: string;
  rate?: number;
  limit?: number;
  json?: boolean;
}

/** One kind of act on rows, with its words. */
export interface BulkAct {
  name: string;
  /** What follows, for the question; with an empty one, rows that are named are acted upon without a question. */
  warning: string;
  /** The states that it acts on. */
  actsOn: readonly string[];
  nothingFits: string;
  look: (ids: readonly string[]) => Promise<Answer[]>;
  choose: () => Promise<RowSnapshot>;
  /** `chosen`: rows that have changed since they were chosen are left alone. */
  run: (ids: readonly string[], chosen: boolean, onBatch: (answers: readonly Answer[]) => void) => Promise<void>;
  isDone: (answer: Answer) => boolean;
  /** The word for an answer in sums. */
  kindOf: (answer: Answer) => string;
}

/** ` that is dead`: which rows were looked for, also where the operator did not say so. */
export function thatIs({ states }: { states?: readonly string[] }): string {
  return states === undefined ? '' : ` that is ${states.join(' or ')}`;
}

/** How often a long piece of work is told of. */
const PROGRESS_MS = 2_000;

/** Rows that the operator names: a line for each, and exit code 1 if one was not to be changed. */
export async function actOnIds(cli: Cli, act: BulkAct, ids: readonly string[], options: BulkOptions): Promise<void> {
  if (options.dryRun) {
    const answers = await act.look(ids);
    if (options.json) sayJson(cli, { act: act.name, dryRun: true, answers });
    else {
      say(cli, formatAnswers(answers));
      say(cli, `Nothing was changed. ${act.name} acts on rows that are ${act.actsOn.join(', ')}.`);
    }
    return;
  }
  const rows = ids.length === 1 ? `message ${printable(ids[0] ?? '')}` : `${spokenCount(ids.length)} messages`;
  if (act.warning !== '') await confirm(cli, `${titleOf(act)} ${rows}? ${act.warning}`, options.yes);
  const answered: Answer[] = [];
  await act.run(ids, false, (answers) => {
    if (!options.json) say(cli, formatAnswers(answers));
    answered.push(...answers);
  });
  if (options.json) sayJson(cli, { act: act.name, dryRun: false, answers: answered });
  if (!answered.every(act.isDone)) cli.exitCode = EXIT.failed;
}

/** Rows that filters choose: those of now, told in sums; what has changed by the time it is its turn is left alone. */
export async function actOnAll(cli: Cli, act: BulkAct, options: BulkOptions): Promise<void> {
  const chosen = await act.choose();
  const { kinds } = chosen;
  const rows = chosen.ids.length;
  if (options.json && (options.dryRun || rows === 0)) {
    sayJson(cli, { act: act.name, dryRun: options.dryRun === true, rows, kinds, answers: {} });
    return;
  }
  if (rows === 0) {
    say(cli, act.nothingFits);
    return;
  }
  const what = formatKinds(chosen);
  if (options.dryRun) {
    say(cli, `Would ${act.name} ${what}. Nothing was changed.`);
    return;
  }
  await confirm(cli, printable(`${titleOf(act)} ${what}? ${act.warning}`.trimEnd()), options.yes);
  const sums = await inBatches(cli, act, chosen.ids);
  if (options.json) sayJson(cli, { act: act.name, dryRun: false, rows, kinds, answers: Object.fromEntries(sums) });
  else say(cli, `${sumsText(act, sums)}.`);
  if (rows === MOST_BULK_ROWS) cli.context.err('That is the most for one call; call it again for the rest.\n');
}

function titleOf({ name }: BulkAct): string {
  return name.charAt(0).toUpperCase() + name.slice(1);
}

async function inBatches(cli: Cli, act: BulkAct, ids: readonly string[]): Promise<Map<string, number>> {
  const sums = new Map<string, number>();
  const total = spokenCount(ids.length);
  let seen = 0;
  let toldAt = systemClock.now();
  const count = (answers: readonly Answer[]): void => {
    for (const answer of answers) {
      const kind = act.kindOf(answer);
      sums.set(kind, (sums.get(kind) ?? 0) + 1);
    }
    seen += answers.length;
    if (systemClock.now() - toldAt < PROGRESS_MS) return;
    toldAt = systemClock.now();
    cli.context.err(`${spokenCount(seen)} of ${total}\n`);
  };
  try {
    await act.run(ids, true, count);
  } catch (error) {
    cli.context.err(`${spokenCount(seen)} of ${total} handled before it failed; what was done stays done.\n`);
    throw error;
  }
  return sums;
}

/** `400 scheduled; skipped: 2 changed meanwhile`. */
function sumsText(act: BulkAct, sums: ReadonlyMap<string, number>): string {
  const all = [...sums];
  const told = (kinds: typeof all): string => kinds.map(([answer, n]) => `${spokenCount(n)} ${answer}`).join(', ');
  const done = all.filter(([answer]) => act.isDone({ id: '', answer }));
  const others = all.filter((entry) => !done.includes(entry));
  return [told(done), others.length === 0 ? '' : `skipped: ${told(others)}`].filter((part) => part !== '').join('; ');
}

function say(cli: Cli, text: string): void {
  cli.context.out(`${printable(createTextRedactor()(text))}\n`);
}

function sayJson(cli: Cli, value: unknown): void {
  cli.context.out(`${JSON.stringify(value, null, 2)}\n`);
}
