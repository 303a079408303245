import { InvalidArgumentError, type Command } from 'commander';
import { adoptRelay, dropRelay, listRelays, type ListedRelay } from '../app/relay-admin.js';
import type { Config } from '../config/load.js';
import { ConfigInvalid } from '../config/problems.js';
import { spoken } from '../core/spoken.js';
import { confirm } from './confirm.js';
import { sayJson } from './json.js';
import type { Cli } from './program.js';
import { columns, printable, spokenBytes } from './text.js';

interface ActOptions {
  reason?: string;
  yes?: boolean;
  json?: boolean;
}

type AdoptOptions = ActOptions & { relay?: string; expect?: string };
type DropOptions = ActOptions & { force?: boolean };

export function registerRelay(program: Command, cli: Cli): void {
  const relay = program.command('relay').description('List, adopt or drop the recorded relays of the schema.');
  const say = (text: string): void => cli.context.out(`${printable(text)}\n`);

  const sayUnseen = (why: string | undefined): void => {
    if (why !== undefined) say(`Whether a relay holds the lock queue could not be seen: ${why}`);
  };

  relay
    .command('list')
    .description('Show the recorded relays.')
    .option('--json', 'as JSON')
    .action(async ({ json }: { json?: boolean }) => {
      const listed = await listRelays(cli.configuration.database());
      if (json) cli.context.out(`${JSON.stringify(listed, null, 2)}\n`);
      else say(formatRelays(listed));
    });

  relay
    .command('adopt')
    .description('Let the relay work with the servers that are configured now, after an upgrade, a restore or a copy.')
    .option('--relay <name>', 'instead of relay.name')
    .option('--expect <system identifier>', 'only if the connected server is this one', systemIdentifier)
    .option('--reason <text>', 'why; kept in the action_log')
    .option('--yes', 'do not ask')
    .option('--json', 'as JSON')
    .action(async (options: AdoptOptions) => {
      const config = cli.configuration.whole();
      const name = options.relay ?? config.relay.name;
      if (options.expect === undefined) {
        const question = `Adopt relay ${name}? If the original of this database still runs, both will publish its rows.`;
        await confirm(cli, question, options.yes);
      }
      const { systemIdentifier: here, lockUnseen } = await adoptRelay(config, name, options);
      if (options.json) {
        sayJson(cli, { act: 'adopt', relay: name, systemIdentifier: here, lockUnseen: lockUnseen ?? null });
        return;
      }
      say(`Relay ${name} is adopted by PostgreSQL cluster ${here}. Its next start reads the table before the stream.`);
      sayUnseen(lockUnseen);
    });

  relay
    .command('drop <name>')
    .description('Drop the slot and the record of a relay that is not used any more; rows of the outbox stay.')
    .option('--reason <text>', 'why; kept in the action_log')
    .option('--yes', 'do not ask')
    .option('--json', 'as JSON')
    .option('--force', 'also if rows that an application deleted itself, and only the slot can bring, are lost')
    .action(async (name: string, options: DropOptions) => {
      const database = cli.configuration.database();
      await confirm(cli, `Drop relay ${name} of schema ${database.schema} and its replication slot?`, options.yes);
      const { slot, slotName, lockUnseen } = await dropRelay({ database, broker: brokerOf(cli) }, name, options);
      if (options.json) {
        sayJson(cli, { act: 'drop', relay: name, slot, slotName, lockUnseen: lockUnseen ?? null });
        return;
      }
      const told = {
        dropped: `its slot ${slotName ?? ''} too`,
        absent: 'it had no slot',
        left: `slot ${slotName ?? ''} is left, because it is not of this database`,
      }[slot];
      say(`Relay ${name} is dropped; ${told}.`);
      sayUnseen(lockUnseen);
    });
}

/** The broker section, or undefined where there is none that can be used: a broker may be gone for good. */
function brokerOf(cli: Cli): Config['broker'] | undefined {
  try {
    return cli.configuration.whole().broker;
  } catch (error) {
    if (error instanceof ConfigInvalid) return undefined;
    throw error;
  }
}

/** The recorded relays; names of slots and holders may be long, so they have lines of their own. */
export function formatRelays(listed: readonly ListedRelay[]): string {
  if (listed.length === 0) return 'No relay is recorded; the first `waybill run` records one.';
  const rows = listed.map(({ record, slot }) => [
    record.name,
    record.source,
    slot === null ? 'not there' : slot.active ? 'in use' : 'not in use',
    slot?.keptWalBytes == null ? '-' : spokenBytes(slot.keptWalBytes),
    record.checkpointAgeMs === null ? '-' : `${spoken(record.checkpointAgeMs)} ago`,
  ]);
  const [head, ...lines] = columns([['RELAY', 'SOURCE', 'SLOT IS', 'WAL KEPT', 'CHECKPOINT'], ...rows]).split('\n');
  const whole = listed.flatMap(({ record }, n) => [
    lines[n] ?? '',
    `    slot ${record.slot ?? '-'}`,
    `    last holder ${record.holder ?? '-'}`,
  ]);
  return [head, ...whole].join('\n');
}

function systemIdentifier(raw: string): string {
  if (/^\d{1,20}$/.test(raw)) return raw;
  throw new InvalidArgumentError('It is the number that `waybill doctor` or pg_controldata shows.');
}
