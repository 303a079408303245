import { Option, type Command } from 'commander';
import { exportDead, groupDeadMessages } from '../app/inbox-admin.js';
import { MOST_BULK_ROWS } from '../app/outbox-admin.js';
import { createTextRedactor } from '../telemetry/redact.js';
import {
  checkConsumer,
  inboxFilterOf,
  registerInboxAct,
  registerList,
  registerShow,
  withInboxFilters,
  type InboxFilterOptions,
} from './inbox.js';
import { formatGroups } from './inbox-text.js';
import type { Cli } from './program.js';
import { printable } from './text.js';

const LISTED_GROUPS = 50;

type Grouping = 'error' | 'type' | 'id';

export function registerDead(program: Command, cli: Cli): void {
  const dead = program.command('dead').description('Inbound messages that no consumer will try again by itself.');
  const groups = new Option('--group <by>', 'sums of what has this in common').choices(['error', 'type', 'id']);
  registerList(dead, cli, 'dead', (options) => listGroups(cli, options)).addOption(groups);
  registerShow(dead, cli);
  registerInboxAct(dead, cli, 'retry', 'dead');
  registerInboxAct(dead, cli, 'discard', 'dead');
  registerExport(dead, cli);
}

function registerExport(dead: Command, cli: Cli): void {
  withInboxFilters(dead.command('export'), undefined)
    .description('Print dead messages as JSON, one a line, with their attempts.')
    .option('--body', 'with their bodies')
    .action(async (options: InboxFilterOptions & { body?: boolean }) => {
      await checkConsumer(cli, options.consumer);
      const { limit = MOST_BULK_ROWS, body = false } = options;
      const filter = inboxFilterOf(options, undefined);
      await exportDead(cli.configuration.database(), filter, { limit, withBody: body }, (message) =>
        cli.context.out(`${JSON.stringify(message)}\n`),
      );
    });
}

/** The sums of `dead list --group`. */
async function listGroups(
  cli: Cli,
  options: InboxFilterOptions & { group?: Grouping; json?: boolean },
): Promise<boolean> {
  const { group } = options;
  if (group === undefined) return false;
  const filter = inboxFilterOf(options, undefined);
  const groups = await groupDeadMessages(cli.configuration.database(), filter, group, options.limit ?? LISTED_GROUPS);
  if (options.json) cli.context.out(`${JSON.stringify(groups, null, 2)}\n`);
  else cli.context.out(`${printable(createTextRedactor()(formatGroups(groups, group, new Date())))}\n`);
  return true;
}
