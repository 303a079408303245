import { CommanderError, InvalidArgumentError, Option, type Command } from 'commander';
import {
  CONFIG_FILE,
  draftFiles,
  isUnreachable,
  ROLES_FILE,
  SCHEMA_FILE,
  SECRET_PLACES,
  tryServers,
  type InitFile,
  type SecretPlace,
} from '../app/init.js';
import { configFrom } from './configuration.js';
import { checkRelayName, checkSchemaName } from '../config/names.js';
import { passwordsIn } from '../config/urls.js';
import { WaybillError } from '../core/errors.js';
import { createTextRedactor, knownSecrets } from '../telemetry/redact.js';
import { EXIT } from './context.js';
import { sayJson } from './json.js';
import type { Cli } from './program.js';
import { printable } from './text.js';

interface InitOptions {
  databaseUrl?: string;
  brokerUrl?: string;
  schema: string;
  relay: string;
  dir: string;
  secrets: SecretPlace;
  check: boolean;
  json?: boolean;
}

export function registerInit(program: Command, cli: Cli): void {
  program
    .command('init')
    .description('Ask for two URLs, try them, and write a configuration and the SQL to review. Overwrites nothing.')
    .option('--database-url <url>', 'without a password; else it is asked, or WAYBILL_DATABASE_URL(_FILE)')
    .option('--broker-url <url>', 'without a password; else it is asked, or WAYBILL_BROKER_URL(_FILE)')
    .option('--schema <name>', 'the schema for the tables', named(checkSchemaName), 'waybill')
    .option('--relay <name>', 'the name of the relay', named(checkRelayName), 'default')
    .option('--dir <path>', 'where the files go', '.')
    .addOption(
      new Option(
        '--secrets <place>',
        'environment: written nowhere; files: one for each URL; inline: in the configuration',
      )
        .choices(SECRET_PLACES)
        .default('environment'),
    )
    .option('--no-check', 'do not connect')
    .option('--json', 'as JSON')
    .action((options: InitOptions) => init(cli, options));
}

async function init(cli: Cli, options: InitOptions): Promise<void> {
  const { environment, err, out } = cli.context;
  const names = [CONFIG_FILE, SCHEMA_FILE, ROLES_FILE, 'database-url.secret', 'broker-url.secret'];
  const taken = names.filter((name) => cli.context.exists(pathOf(options, name)));
  if (taken.length > 0)
    refuse(cli, `${taken.map((name) => pathOf(options, name)).join(', ')}: already there; nothing was written.`);
  const databaseUrl = await urlFor(
    cli,
    options.databaseUrl,
    'WAYBILL_DATABASE_URL',
    'PostgreSQL, such as postgres://user:password@host:5432/database: ',
  );
  const brokerUrl = await urlFor(
    cli,
    options.brokerUrl,
    'WAYBILL_BROKER_URL',
    'RabbitMQ, such as amqps://user:password@host:5671/vhost: ',
  );
  knownSecrets.add([databaseUrl, brokerUrl].flatMap(passwordsIn));
  const config = configFrom(
    {
      ...environment,
      WAYBILL_DATABASE_URL: databaseUrl,
      WAYBILL_DATABASE_URL_FILE: undefined,
      WAYBILL_BROKER_URL: brokerUrl,
      WAYBILL_BROKER_URL_FILE: undefined,
      WAYBILL_DATABASE_SCHEMA: options.schema,
      WAYBILL_RELAY_NAME: options.relay,
    },
    cli.context.readFile,
  );
  const findings = options.check ? await tryServers(config) : null;
  if (findings !== null) {
    const told = findings.map(({ finding, mend }) => `  - ${finding}${mend === null ? '' : `\n    mend: ${mend}`}`);
    const text = printable(createTextRedactor()(told.join('\n')));
    if (findings.some(isUnreachable)) {
      err(`${text}\n`);
      throw new WaybillError('WAYBILL_CONFIG_INVALID', 'A server cannot be used; nothing was written.', {
        hint: 'Mend it and call init again; or --no-check.',
      });
    }
    if (!options.json) {
      out(
        findings.length === 0
          ? 'Both servers answer, and nothing stands in the way.\n'
          : `Both servers answer. To do before production:\n${text}\n`,
      );
    }
  }
  const draft = draftFiles({ ...options, databaseUrl, brokerUrl }, options.dir);
  for (const file of draft.files) write(cli, options, file);
  if (options.json) {
    const written = draft.files.map(({ name }) => pathOf(options, name));
    sayJson(cli, { findings, written, environment: draft.environment });
    return;
  }
  out(`\nWritten:\n${draft.files.map(({ name }) => `  ${pathOf(options, name)}`).join('\n')}\n`);
  out(`\n${nextSteps(options, draft.environment)}`);
}

function nextSteps(options: InitOptions, environment: readonly { name: string; value: string | null }[]): string {
  const lines = ['Next:'];
  for (const { name, value } of environment) {
    lines.push(
      value === null ? `  set ${name} where Waybill runs (it holds the password)` : `  export ${name}=${value}`,
    );
  }
  const config = pathOf(options, CONFIG_FILE);
  lines.push(
    `  review ${pathOf(options, SCHEMA_FILE)} and ${pathOf(options, ROLES_FILE)}, and apply them with psql;`,
    `    or the tables alone: waybill --config ${config} migrate up`,
    `  waybill --config ${config} doctor`,
    `  waybill --config ${config} run`,
  );
  return `${lines.join('\n')}\n`;
}

async function urlFor(cli: Cli, flag: string | undefined, variable: string, question: string): Promise<string> {
  const { environment, ask, readFile } = cli.context;
  // Why not as the option is read: the command line's own message would repeat it.
  if (passwordsIn(flag ?? '').length > 0) {
    refuse(
      cli,
      `A password in a command line is there for every user of this machine to read: put the URL into ${variable}.`,
    );
  }
  if (flag !== undefined) return flag;
  if (environment[variable]) return environment[variable];
  const file = environment[`${variable}_FILE`];
  if (file) return readFile(file).trim();
  const answer = (await ask?.(question))?.trim();
  if (answer) return answer;
  return refuse(
    cli,
    ask ? 'Nothing was given; nothing was written.' : `Nobody can be asked here: set ${variable} or ${variable}_FILE.`,
  );
}

function write(cli: Cli, options: InitOptions, { name, text, mode }: InitFile): void {
  const path = pathOf(options, name);
  try {
    cli.context.writeNew(path, text, mode);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'failed';
    refuse(
      cli,
      code === 'EEXIST' ? `${path} is already there; it stays as it is.` : `${path} cannot be written (${code}).`,
    );
  }
}

function refuse(cli: Cli, why: string): never {
  cli.context.err(`waybill: ${printable(why)}\n`);
  throw new CommanderError(EXIT.usage, 'waybill.init', why);
}

function pathOf({ dir }: InitOptions, name: string): string {
  return dir === '.' ? name : `${dir.replace(/\/$/, '')}/${name}`;
}

function named(check: (raw: unknown) => { value: string } | { mend: string }): (raw: string) => string {
  return (raw) => {
    const parsed = check(raw);
    if ('value' in parsed) return parsed.value;
    throw new InvalidArgumentError(`${parsed.mend}.`);
  };
}
