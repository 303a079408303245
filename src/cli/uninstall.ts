import { CommanderError, type Command } from 'commander';
import { planUninstall, uninstall, type UninstallPlan } from '../app/uninstall.js';
import { createTextRedactor } from '../telemetry/redact.js';
import { EXIT } from './context.js';
import type { Cli } from './program.js';
import { aligned, printable, spokenBytes, wrapped } from './text.js';

interface UninstallOptions {
  confirm?: string;
  force?: boolean;
  keepBroker?: boolean;
  shared?: boolean;
  dryRun?: boolean;
  json?: boolean;
}

const WIDTH = 80;

export function registerUninstall(program: Command, cli: Cli): void {
  program
    .command('uninstall')
    .description('Remove everything: slots, publication, queues, then the schema with all its rows.')
    .option('--confirm <schema>', 'the name of the schema, instead of typing it')
    .option('--force', 'although rows or messages are unfinished, or things of others go with it')
    .option('--keep-broker', 'leave queues and exchanges alone')
    .option('--shared', 'also exchanges and delay queues, which other installations on the virtual host may use')
    .option('--dry-run', 'only show what would be removed, and what stands against it')
    .option('--json', 'as JSON')
    .action((options: UninstallOptions) => run(cli, options));
}

async function run(cli: Cli, options: UninstallOptions): Promise<void> {
  const redact = createTextRedactor();
  const say = (text: string): void => {
    if (!options.json) cli.context.out(`${printable(redact(text))}\n`);
  };
  const config = cli.configuration.whole();
  const plan = await planUninstall(config, {
    keepBroker: options.keepBroker === true,
    shared: options.shared === true,
  });
  say(formatPlan(plan));
  const stands = plan.obstacles.length > 0 || (plan.losses.length > 0 && !options.force);
  if (options.dryRun) {
    if (options.json) cli.context.out(`${JSON.stringify(plan, null, 2)}\n`);
    if (stands) cli.exitCode = EXIT.check;
    return;
  }
  if (!stands) await confirmByName(cli, plan.schema, options.confirm);
  const done = await uninstall(config, plan, options.force === true);
  if (options.json) cli.context.out(`${JSON.stringify(done, null, 2)}\n`);
  const left = done.leftExchanges.map((name) => `Exchange ${name} was left: others are bound to it.`);
  const removed = 'Waybill is removed. Roles of the server and its settings stay as they are.';
  const foreign = leftForeign(done.leftForeign);
  say(['', removed, ...left, ...foreign, ...leftShared(done.leftShared, plan.schema)].join('\n'));
}

/** What other installations may use; with the command for whoever knows that there is none. */
function leftShared(names: readonly string[], schema: string): string[] {
  if (names.length === 0) return [];
  const text = `Left, because other installations of Waybill on this virtual host may use them: ${names.join(', ')}. If there is none:`;
  return [...wrapped(text, WIDTH), `  waybill uninstall --shared --confirm ${schema}`];
}

function leftForeign(things: readonly string[]): string[] {
  if (things.length === 0) return [];
  return wrapped(`Left, because it is not declared by this configuration (topology): ${things.join(', ')}.`, WIDTH);
}

/** Why the name: --yes is typed without thinking, and this cannot be taken back. */
async function confirmByName(cli: Cli, schema: string, given: string | undefined): Promise<void> {
  const { ask, err } = cli.context;
  if (given === undefined && !ask) {
    err(`Nobody can answer here; give --confirm ${schema}.\n`);
    throw new CommanderError(EXIT.usage, 'waybill.unconfirmed', 'not confirmed');
  }
  const typed = given ?? (await ask?.(`This cannot be taken back. Type the name of the schema (${schema}) to go on: `));
  if (typed?.trim() === schema) return;
  err(`That is not ${schema}; nothing was removed.\n`);
  throw new CommanderError(EXIT.usage, 'waybill.unconfirmed', 'not confirmed');
}

function formatPlan(plan: UninstallPlan): string {
  const { contents, slots, publication, broker, unfinished } = plan;
  const none = 'none';
  const names = (kind: 'queue' | 'exchange'): string =>
    broker?.present
      .filter((thing) => thing.kind === kind)
      .map(({ name }) => name)
      .join(', ') || none;
  const rows: (readonly [string, string])[] = [
    ['database', plan.database],
    ['slots', slots.map(({ name }) => name).join(', ') || none],
    ['publication', publication ?? none],
    ['queues', broker ? names('queue') : 'left alone'],
    ['exchanges', broker ? `${names('exchange')} (those that others are bound to stay)` : 'left alone'],
    ...(broker && broker.shared.length > 0
      ? [
          [
            'left',
            `${broker.shared.join(', ')} (other installations on the virtual host may use them; --shared)`,
          ] as const,
        ]
      : []),
    ...(broker && broker.foreign.length > 0
      ? [['left', `${broker.foreign.join(', ')} (not declared by this configuration)`] as const]
      : []),
    ['schema', contents === null ? `${plan.schema} does not exist` : `${plan.schema}, ${spokenBytes(contents.bytes)}`],
    ['unfinished', `${unfinished.outbox} in the outbox, ${unfinished.inbox} in the inbox`],
  ];
  const lines = rows.flatMap(([label, text]) => {
    const [first = '', ...rest] = wrapped(text, WIDTH - 15);
    return [[label, first] as const, ...rest.map((line) => ['', line] as const)];
  });
  const list = (title: string, items: readonly string[]): string =>
    items.length === 0
      ? ''
      : `\n\n${title}\n${items.flatMap((item) => wrapped(`- ${item}`, WIDTH - 4).map((line, n) => (n === 0 ? `  ${line}` : `    ${line}`))).join('\n')}`;
  const users = contents?.users ?? [];
  return [
    `To be removed\n${aligned(lines, '  ')}`,
    list('STANDS AGAINST IT', plan.obstacles),
    list('WOULD BE LOST (--force)', plan.losses),
    list('Uses the tables at this moment', users),
  ].join('');
}
