import type { Command } from 'commander';
import { hostUrls } from '../config/hosts.js';
import { applyTopology, exportTopology, planTopology, vhostOf, type TopologyPlan } from '../app/topology.js';
import { counted } from '../core/counted.js';
import { createTextRedactor } from '../telemetry/redact.js';
import { confirm } from './confirm.js';
import { EXIT, type CliContext } from './context.js';
import { sayJson } from './json.js';
import type { Cli } from './program.js';
import { cell } from './outbox-text.js';
import { columns, printable, wrapped } from './text.js';

type Step = TopologyPlan['steps'][number];

const WIDTH = 80;
const WIDEST = 160;

const STATES: Readonly<Record<Step['state'], string>> = {
  missing: 'to make',
  fits: 'is there',
  differs: 'DIFFERS',
  unseen: 'is there?',
  refused: 'REFUSED',
  asserted: 'is bound?',
  'no-source': 'NO SOURCE',
  'no-plugin': 'NO PLUGIN',
};

export function registerTopology(program: Command, cli: Cli): void {
  const topology = program.command('topology').description('Exchanges, queues and bindings: compare, declare, export.');
  const say = (text: string): void => cli.context.out(`${printable(createTextRedactor()(text))}\n`);

  topology
    .command('plan')
    .description('Show what the configuration wants on the broker, how it is there, and the permissions of its user.')
    .option('--json', 'as JSON')
    .option('--check', 'exit code 4 unless all is there and fits')
    .action(async ({ json, check }: { json?: boolean; check?: boolean }) => {
      const plan = await planTopology(cli.configuration.broker());
      if (json) cli.context.out(`${JSON.stringify(plan, null, 2)}\n`);
      else say(formatPlan(plan, widthOf(cli.context)));
      const fits = plan.steps.every(({ state }) => state === 'fits' || state === 'unseen' || state === 'asserted');
      if (check && !fits) cli.exitCode = EXIT.check;
    });

  topology
    .command('apply')
    .description('Declare what is missing. What is there is never changed or deleted.')
    .option('--yes', 'do not ask')
    .option('--dry-run', 'the same as plan')
    .option('--json', 'as JSON')
    .action(async ({ yes, dryRun, json }: { yes?: boolean; dryRun?: boolean; json?: boolean }) => {
      const config = cli.configuration.broker();
      const plan = await planTopology(config);
      const answer = (done: readonly Step[]): void =>
        sayJson(cli, { act: 'apply', dryRun: dryRun === true, steps: plan.steps, done });
      if (!json) say(formatPlan(plan, widthOf(cli.context)));
      if (dryRun) {
        if (json) answer([]);
        return;
      }
      const things = plan.steps.filter(({ kind, state }) => kind !== 'binding' && state === 'missing').length;
      const bindings = plan.steps.filter(({ kind }) => kind === 'binding').length;
      if (things + bindings === 0 && plan.steps.every(({ state }) => state === 'fits')) {
        if (json) answer([]);
        else say('\nNothing is to be done.');
        return;
      }
      const made = counted(things, 'exchange or queue', 'exchanges and queues');
      const declared = counted(bindings, 'binding');
      await confirm(cli, `Make ${made}, and declare ${declared}?`, yes);
      const done = await applyTopology(config);
      if (json) answer(done);
      else say(`\n${made} made; ${declared} declared.`);
    });

  topology
    .command('export')
    .description('Print the wanted things as definitions for `rabbitmqctl import_definitions`; connects to nothing.')
    .option('--vhost <name>', 'instead of the virtual host of broker.url')
    .option('--user <name>', 'with the permissions that this user needs; it must exist')
    .action(({ vhost, user }: { vhost?: string; user?: string }) => {
      const config = cli.configuration.broker();
      const target = vhost ?? vhostOf(hostUrls(config.broker.url)[0]);
      cli.context.out(`${JSON.stringify(exportTopology(config, target, user), null, 2)}\n`);
    });
}

/** As wide as a wide terminal; elsewhere for 80 columns. */
function widthOf({ outIsTerminal, outColumns }: CliContext): number {
  return outIsTerminal ? Math.min(WIDEST, Math.max(WIDTH, outColumns?.() ?? WIDTH)) : WIDTH;
}

/** Names differ most often at their ends. */
function middleCut(name: string, width: number): string {
  if (name.length <= width) return name;
  const end = Math.floor((width - 1) / 2);
  return `${name.slice(0, width - 1 - end)}…${name.slice(-end)}`;
}

export function formatPlan({ steps, permissions }: TopologyPlan, width = WIDTH): string {
  const before = 9 + 2 + 8 + 2;
  const most = Math.max(34, width - before - 2 - 30);
  const nameWidth = Math.min(most, Math.max(4, ...steps.map(({ name }) => name.length)));
  const rows = steps.map(({ kind, name, detail, state }) => [
    STATES[state],
    kind,
    middleCut(printable(name), nameWidth),
    detail,
  ]);
  const fixed = before + nameWidth + 2;
  const table =
    steps.length === 0
      ? 'The configuration wants nothing on the broker.'
      : columns(
          rows.map(([state = '', kind = '', name = '', detail = '']) => [
            state,
            kind,
            name,
            cell(detail, width - fixed),
          ]),
        );
  const remarks = remarksOn(steps).map((remark) => `\n\n${wrapped(remark, WIDTH).join('\n')}`);
  // Why not cut: they are to be copied.
  const needed = `The broker's user needs\n  configure  ${permissions.configure}\n  write      ${permissions.write}\n  read       ${permissions.read}`;
  return `${table}${remarks.join('')}\n\n${needed}`;
}

/** What the words of the table mean for whoever reads it. */
function remarksOn(steps: readonly Step[]): string[] {
  const remarks: string[] = [];
  const has = (state: Step['state']): boolean => steps.some((step) => step.state === state);
  if (has('asserted')) {
    remarks.push(
      'is bound? AMQP cannot list bindings. `waybill topology apply` declares them once more, which changes nothing where they are there; `rabbitmqctl list_bindings` shows them.',
    );
  }
  if (has('differs')) {
    const differing = steps.filter(({ state }) => state === 'differs').map(({ kind, name }) => `${kind} ${name}`);
    remarks.push(
      `DIFFERS: ${differing.join(', ')}. Properties cannot be changed: delete it when it is empty and apply again, or configure another name.`,
    );
  }
  if (has('no-source')) {
    remarks.push(
      'NO SOURCE: the exchange is not there. It is declared by those who publish to it: see that it is there, or correct its name; until then the queue cannot be bound.',
    );
  }
  if (has('no-plugin')) {
    remarks.push(
      'NO PLUGIN: the broker does not know exchanges of the delayed-message plugin. Enable it on every node (`rabbitmq-plugins enable rabbitmq_delayed_message_exchange`), or set delay: ttl-queues.',
    );
  }
  return remarks;
}
