import { InvalidArgumentError, type Command } from 'commander';
import { databaseEndpoints } from '../app/endpoints.js';
import { applyMigrations, printMigrations, printRoles, readMigrationStatus } from '../app/migrate.js';
import { checkSchemaName } from '../config/names.js';
import { EXIT } from './context.js';
import { sayJson } from './json.js';
import type { Cli } from './program.js';
import { columns } from './text.js';

export function registerMigrate(program: Command, cli: Cli): void {
  const migrate = program.command('migrate').description('Install and update the Waybill tables.');
  const target = (schema: string | undefined) => {
    const configured = cli.configuration.database();
    return { servers: databaseEndpoints(configured), schema: schema ?? configured.schema };
  };

  migrate
    .command('up', { isDefault: true })
    .description('Apply the migrations that are missing.')
    .option('--schema <name>', 'instead of database.schema', schemaName)
    .option('--json', 'as JSON')
    .action(async ({ schema, json }: { schema?: string; json?: boolean }) => {
      const into = target(schema);
      const applied = await applyMigrations(into, (line) => cli.context.err(`${line}\n`));
      if (json) sayJson(cli, { schema: into.schema, applied });
      else {
        cli.context.out(
          applied.length === 0
            ? `Schema ${into.schema} is up to date.\n`
            : `Schema ${into.schema} is up to date; ${applied.length} applied.\n`,
        );
      }
    });

  migrate
    .command('status')
    .description('Show what is installed and what is missing; exit code 3 if something is missing.')
    .option('--schema <name>', 'instead of database.schema', schemaName)
    .option('--json', 'as JSON')
    .action(async ({ schema, json }: { schema?: string; json?: boolean }) => {
      const status = await readMigrationStatus(target(schema));
      const pending = status.pending.map(({ version, name }) => ({ version, name }));
      if (pending.length > 0) cli.exitCode = EXIT.schema;
      if (json) {
        cli.context.out(`${JSON.stringify({ ...status, pending }, null, 2)}\n`);
        return;
      }
      const rows = [
        ...status.applied.map((row) => [String(row.version), row.name, `applied ${row.appliedAt.toISOString()}`]),
        ...pending.map((row) => [String(row.version), row.name, 'missing']),
      ];
      cli.context.out(`Schema ${status.schema}\n${columns(rows, '  ')}\n`);
      if (pending.length > 0) cli.context.out('To apply what is missing: waybill migrate up\n');
    });

  migrate
    .command('print')
    .description('Print the SQL for psql; connects to nothing.')
    .option('--schema <name>', 'instead of database.schema', schemaName)
    .option('--from <version>', 'leave out the migrations before this one', versionNumber, 1)
    .option('--roles', 'print the roles and grants too')
    .action(({ schema, from, roles }: { schema?: string; from: number; roles?: boolean }) => {
      const name = schema ?? cli.configuration.schemaName();
      cli.context.out(printMigrations(name, from));
      if (roles) cli.context.out(printRoles({ schema: name }));
    });
}

function schemaName(raw: string): string {
  const parsed = checkSchemaName(raw);
  if ('value' in parsed) return parsed.value;
  throw new InvalidArgumentError(`${parsed.mend}.`);
}

function versionNumber(raw: string): number {
  if (/^[1-9]\d{0,5}$/.test(raw)) return Number(raw);
  throw new InvalidArgumentError('It is a whole number from 1.');
}
