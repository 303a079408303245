import type { Command } from 'commander';
import { countRedaction, estimateSearch, redact } from '../app/inbox-admin.js';
import { counted } from '../core/counted.js';
import { confirm } from './confirm.js';
import type { Cli } from './program.js';
import { columns, printable, spokenCount } from './text.js';

/** From here on the search for a key takes its time. */
const LONG_SEARCH_ROWS = 1_000_000;

interface RedactOptions {
  key?: string;
  id?: string;
  reason?: string;
  dryRun?: boolean;
  yes?: boolean;
  json?: boolean;
}

export function registerRedact(program: Command, cli: Cli): void {
  program
    .command('redact')
    .description("Remove the content of a key's or one id's messages from inbox, outbox, history and logs. Ids stay.")
    .option('--key <key>', 'every message of this key')
    .option('--id <id>', 'this message')
    .option('--reason <text>', 'why; kept in the action_log')
    .option('--dry-run', 'only count')
    .option('--yes', 'do not ask')
    .option('--json', 'as JSON')
    .action(async (options: RedactOptions, self: Command) => {
      const { key = null, id = null, reason = null } = options;
      if ((key === null) === (id === null)) self.error('error: give --key or --id, one of them');
      const database = cli.configuration.database();
      const about = key === null ? 0 : await estimateSearch(database);
      if (about >= LONG_SEARCH_ROWS) {
        cli.context.err(
          `Looks through about ${spokenCount(about)} messages of the inbox; nothing is locked meanwhile.\n`,
        );
      }
      const before = await countRedaction(database, { key, id });
      if (!options.dryRun) {
        const rows = before.filter(({ place }) => place !== 'outbox_pending').reduce((sum, one) => sum + one.rows, 0);
        const whose = printable(key === null ? `message ${id ?? ''}` : `key ${key}`);
        await confirm(
          cli,
          `Remove the content of ${whose}, ${counted(rows, 'row')}? It cannot be brought back.`,
          options.yes,
        );
      }
      const places = options.dryRun ? before : await redact(database, { key, id, reason });
      if (options.json) {
        cli.context.out(`${JSON.stringify({ dryRun: options.dryRun === true, places }, null, 2)}\n`);
        return;
      }
      cli.context.out(`${columns(places.map(({ place, rows }) => [place, spokenCount(rows)]))}\n`);
      const pending = places.find(({ place }) => place === 'outbox_pending')?.rows ?? 0;
      if (pending > 0)
        cli.context.out(
          `${counted(pending, 'row is', 'rows are')} about to be published and left as ${pending === 1 ? 'it is' : 'they are'}: call it again afterwards.\n`,
        );
      cli.context.out(
        options.dryRun
          ? 'Nothing was changed.\n'
          : 'Queues of RabbitMQ, the write-ahead log, backups and your own tables are not reached.\n',
      );
    });
}
