import type { Command } from 'commander';
import { traceMessage, type Trace } from '../app/trace.js';
import { createTextRedactor } from '../telemetry/redact.js';
import { EXIT } from './context.js';
import { cell } from './outbox-text.js';
import type { Cli } from './program.js';
import { aligned, printable, spokenBytes, wrapped } from './text.js';

export function registerTrace(program: Command, cli: Cli): void {
  program
    .command('trace')
    .argument('<id>', 'the id of a message')
    .description("Tell one message's whole life, where the trouble is, and the next command to type.")
    .option('--json', 'as JSON')
    .action(async (given: string, { json }: { json?: boolean }) => {
      const trace = await traceMessage(cli.configuration.database(), given.trim());
      if (!trace.outbox && !trace.history?.length && !trace.inbox?.length) cli.exitCode = EXIT.failed;
      const text = json ? JSON.stringify(trace, null, 2) : printable(createTextRedactor()(formatTrace(trace)));
      cli.context.out(`${text}\n`);
    });
}

const WIDTH = 80;

/** The life of a message as a person reads it: what it is, what happened in order of time, and the verdict last. */
function formatTrace(trace: Trace): string {
  const parts = [headLines(trace), eventLines(trace), placeLines(trace), remarks(trace), verdictLines(trace)];
  return parts.filter((part) => part !== '').join('\n\n');
}

function headLines({ id, outbox, history, inbox }: Trace): string {
  const known = outbox ?? history?.[0] ?? inbox?.[0];
  const size = outbox?.size ?? history?.[0]?.size ?? inbox?.[0]?.size ?? null;
  const facts: [string, string | null][] = [
    ['message', cell(id, WIDTH - 12)],
    ['type', known?.type ?? null],
    ['key', known?.key ?? null],
    ['size', size === null ? null : spokenBytes(size)],
  ];
  return aligned(facts.flatMap(([label, text]) => (text === null ? [] : [[label, cell(text, WIDTH - 10)] as const])));
}

/** Who acted stands where there is room for it, because it is to be asked. */
function told({ where, what }: Trace['events'][number]): { where: string; what: string } {
  const actor = /^operator (.+)$/s.exec(where)?.[1];
  return actor === undefined ? { where, what } : { where: 'operator', what: `${printable(actor)}: ${what}` };
}

function eventLines({ events: all }: Trace): string {
  const events = all.map((event) => ({ at: event.at, ...told(event) }));
  const width = Math.min(24, Math.max(0, ...events.map(({ where }) => where.length)));
  return events
    .flatMap(({ at, where, what }) => {
      const head = `${at.toISOString()}  ${cell(where, width).padEnd(width)}  `;
      const [first = '', ...rest] = wrapped(what.slice(0, 600).replaceAll(/\s+/g, ' '), WIDTH - head.length);
      return [head + first, ...rest.map((line) => ' '.repeat(head.length) + line)];
    })
    .join('\n');
}

/** Where it is now. */
function placeLines({ outbox, history, inbox }: Trace): string {
  const rows: [string, string][] = [];
  if (outbox) rows.push(['outbox', `${outbox.state}${outbox.error === null ? '' : `: ${outbox.error}`}`]);
  else if (history?.[0]) rows.push(['outbox', history[0].state]);
  for (const row of inbox ?? []) {
    const tries = row.failures + row.abandoned;
    const parts = [row.status, row.deadReason ?? '', tries === 0 ? '' : `${tries} failed`, row.error ?? ''];
    rows.push([`consumer ${cell(row.consumer, 30)}`, parts.filter((part) => part !== '').join('; ')]);
  }
  return aligned(
    rows.map(
      ([label, text]) => [label, cell(text, WIDTH - 2 - Math.max(0, ...rows.map(([name]) => name.length)))] as const,
    ),
  );
}

function remarks({ outbox, history, inbox }: Trace): string {
  const lines: string[] = [];
  const [last] = history ?? [];
  if (!outbox && last && (last.state === 'published' || last.state === 'accepted') && last.headers === null) {
    lines.push('Its body is gone (relay.history: full would have kept it): it cannot be replayed from here.');
  }
  if (history === null) lines.push('The history was not looked at: this role may not read it.');
  if (inbox === null) lines.push('No inbox was looked at: it is not installed, or this role may not read it.');
  return lines.flatMap((line) => wrapped(line, WIDTH)).join('\n');
}

function verdictLines({ verdict: { verdict, reason, next } }: Trace): string {
  const lines = wrapped(`VERDICT  ${verdict}: ${printable(reason).replaceAll('\n', ' ')}.`, WIDTH);
  // Why not wrapped: it is to be copied.
  return [...lines, ...(next === null ? [] : [`   next  ${next.replaceAll('\n', ' ')}`])].join('\n');
}
