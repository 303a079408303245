import { Option, type Command } from 'commander';
import { followMessages, type TailEvent } from '../app/tail.js';
import { WaybillError } from '../core/errors.js';
import { systemClock } from '../runtime/clock.js';
import { createTextRedactor } from '../telemetry/redact.js';
import { cell } from './outbox-text.js';
import { checkConsumer } from './inbox.js';
import type { Cli } from './program.js';
import { printable } from './text.js';

interface TailOptions {
  only?: 'out' | 'in';
  type?: string;
  key?: string;
  consumer?: string;
  json?: boolean;
}

const WIDTH = 80;

export function registerTail(program: Command, cli: Cli): void {
  program
    .command('tail')
    .description(
      'Show messages as they go out and come in, until Ctrl-C. Needs relay.history: trace or full for the former.',
    )
    .addOption(new Option('--only <direction>', 'messages that go out, or that come in').choices(['out', 'in']))
    .option('--type <type>', 'of this type')
    .option('--key <key>', 'of this key')
    .option('--consumer <name>', 'of this consumer')
    .option('--json', 'one JSON object a line')
    .action((options: TailOptions) => tail(cli, options));
}

async function tail(cli: Cli, options: TailOptions): Promise<void> {
  const { out, err, onSignal } = cli.context;
  await checkConsumer(cli, options.consumer);
  const stopping = new AbortController();
  onSignal((name) => {
    if (name !== 'SIGHUP') stopping.abort();
  });
  const redact = createTextRedactor();
  await followMessages(
    cli.configuration.database(),
    {
      onReady({ outbox, inbox }) {
        if (!outbox && !inbox) {
          throw new WaybillError('WAYBILL_DATABASE_REFUSED', 'This role may read neither history nor inbox.', {
            hint: 'Use the role for operators (see sql/roles.sql).',
          });
        }
        const missing = [outbox ? '' : 'messages that go out', inbox ? '' : 'messages that come in'].filter(Boolean);
        const but = missing.length === 0 ? '' : `; ${missing.join(' and ')} are not seen: this role may not read them`;
        err(`Following${but}. Ctrl-C ends it.\n`);
      },
      onEvents(events) {
        for (const event of events) {
          if (!isWanted(event, options)) continue;
          out(options.json ? `${jsonLine(event)}\n` : `${printable(redact(line(event)))}\n`);
        }
      },
      onLost: (why) => err(`${printable(redact(why.message))}; trying again.\n`),
    },
    systemClock,
    stopping.signal,
  );
}

function isWanted(event: TailEvent, { only, type, key, consumer }: TailOptions): boolean {
  return (
    (only === undefined || event.direction === only) &&
    (type === undefined || event.type === type) &&
    (key === undefined || event.key === key) &&
    (consumer === undefined || event.consumer === consumer)
  );
}

function jsonLine({
  at,
  direction,
  event,
  id,
  type,
  key,
  consumer,
  exchange,
  routingKey,
  error,
  size,
}: TailEvent): string {
  return JSON.stringify({ at, direction, event, id, type, key, consumer, exchange, routingKey, error, size });
}

/** `03:04:05.123 > published 9f64… order.paid order-1`; an error on a line of its own. */
function line({ at, direction, event, id, type, key, consumer, error }: TailEvent): string {
  const head = `${at.toISOString().slice(11, 23)} ${direction === 'out' ? '>' : '<'} ${event.padEnd(9)} ${cell(id, 36)} `;
  const rest = [consumer, type, key].filter((part) => part !== null && part !== '').join(' ');
  const first = head + cell(rest, Math.max(8, WIDTH - head.length));
  return error === null || event === 'applied' || event === 'received'
    ? first
    : `${first}\n    ${cell(error, WIDTH - 4)}`;
}
