import type { Command } from 'commander';
import { hostUrls } from '../config/hosts.js';
import { applyTopology, exportTopology, planTopology, vhostOf, type TopologyPlan } from '../app/topology.js';
import { createTextRedactor } from '../telemetry/redact.js';
import { confirm } from './confirm.js';
import { EXIT } from './context.js';
import type { Cli } from './program.js';
import { cell } from './outbox-text.js';
import { columns, printable } from './text.js';

type Step = TopologyPlan['steps'][number];

const WIDTH = 80;

const STATES: Readonly<Record<Step['state'], string>> = {
  missing: 'to make',
  fits: 'is there',
  differs: 'DIFFERS',
  unseen: 'is there?',
  refused: 'REFUSED',
  asserted: 'to bind',
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
      const plan = await planTopology(cli.configuration.whole());
      if (json) cli.context.out(`${JSON.stringify(plan, null, 2)}\n`);
      else say(formatPlan(plan));
      const fits = plan.steps.every(({ state }) => state === 'fits' || state === 'unseen' || state === 'asserted');
      if (check && !fits) cli.exitCode = EXIT.check;
    });

  topology
    .command('apply')
    .description('Declare what is missing. What is there is never changed or deleted.')
    .option('--yes', 'do not ask')
    .option('--dry-run', 'the same as plan')
    .action(async ({ yes, dryRun }: { yes?: boolean; dryRun?: boolean }) => {
      const config = cli.configuration.whole();
      const plan = await planTopology(config);
      say(formatPlan(plan));
      if (dryRun) return;
      const missing = plan.steps.filter(({ state }) => state === 'missing').length;
      const bindings = plan.steps.filter(({ state }) => state === 'asserted').length;
      if (missing + bindings === 0 && plan.steps.every(({ state }) => state === 'fits')) {
        say('\nNothing is to be done.');
        return;
      }
      await confirm(cli, `Make ${missing} exchanges and queues, and assert ${bindings} bindings?`, yes);
      await applyTopology(config);
      say(`\n${missing} made, ${bindings} bindings asserted.`);
    });

  topology
    .command('export')
    .description('Print the wanted things as definitions for `rabbitmqctl import_definitions`; connects to nothing.')
    .option('--vhost <name>', 'instead of the virtual host of broker.url')
    .option('--user <name>', 'with the permissions that this user needs; it must exist')
    .action(({ vhost, user }: { vhost?: string; user?: string }) => {
      const config = cli.configuration.whole();
      const target = vhost ?? vhostOf(hostUrls(config.broker.url)[0]);
      cli.context.out(`${JSON.stringify(exportTopology(config, target, user), null, 2)}\n`);
    });
}

function formatPlan({ steps, permissions }: TopologyPlan): string {
  const nameWidth = Math.min(34, Math.max(4, ...steps.map(({ name }) => name.length)));
  const rows = steps.map(({ kind, name, detail, state }) => [STATES[state], kind, cell(name, nameWidth), detail]);
  const fixed = 9 + 2 + 8 + 2 + nameWidth + 2;
  const table =
    steps.length === 0
      ? 'The configuration wants nothing on the broker.'
      : columns(
          rows.map(([state = '', kind = '', name = '', detail = '']) => [
            state,
            kind,
            name,
            cell(detail, WIDTH - fixed),
          ]),
        );
  const differing = steps.filter(({ state }) => state === 'differs').map(({ kind, name }) => `${kind} ${name}`);
  const warning =
    differing.length === 0
      ? ''
      : `\n\nDIFFERS: ${differing.join(', ')}. Properties cannot be changed: delete it when it is empty and\napply again, or configure another name.`;
  const plugin = steps.some(({ state }) => state === 'no-plugin')
    ? '\n\nNO PLUGIN: the broker does not know exchanges of the delayed-message plugin. Enable it on every\nnode (rabbitmq-plugins enable rabbitmq_delayed_message_exchange), or set delay: ttl-queues.'
    : '';
  // Why not cut: they are to be copied.
  const needed = `The broker's user needs\n  configure  ${permissions.configure}\n  write      ${permissions.write}\n  read       ${permissions.read}`;
  return `${table}${warning}${plugin}\n\n${needed}`;
}
