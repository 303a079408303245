import { stringify } from 'yaml';
import type { Config } from '../config/load.js';
import { passwordsIn } from '../config/urls.js';
import { examine } from './doctor.js';
import type { Finding } from './doctor-findings.js';
import { printMigrations, printRoles } from './migrate.js';

/** Where passwords are kept: nowhere by init (the environment), in files of their own, or in the configuration. */
export const SECRET_PLACES = ['environment', 'files', 'inline'] as const;

export type SecretPlace = (typeof SECRET_PLACES)[number];

/** What the operator said. */
export interface InitAnswers {
  databaseUrl: string;
  brokerUrl: string;
  schema: string;
  relay: string;
  secrets: SecretPlace;
}

/** A file to be written; `mode` as chmod takes it. */
export interface InitFile {
  name: string;
  text: string;
  mode: number;
}

/** The files to review, and the environment that the configuration then needs (names alone, or with their files). */
export interface InitDraft {
  files: InitFile[];
  environment: { name: string; value: string | null }[];
}

export const CONFIG_FILE = 'waybill.yaml';
export const SCHEMA_FILE = 'waybill-schema.sql';
export const ROLES_FILE = 'waybill-roles.sql';

/** Makes the configuration and the SQL; touches nothing. A URL without a password is no secret and stands in the file. */
export function draftFiles(answers: InitAnswers, directory: string): InitDraft {
  const files: InitFile[] = [];
  const environment: InitDraft['environment'] = [];
  const url = (section: 'database' | 'broker', value: string): string => {
    const variable = `WAYBILL_${section.toUpperCase()}_URL`;
    if (answers.secrets === 'inline' || passwordsIn(value).length === 0) return `  ${stringify({ url: value }).trim()}`;
    if (answers.secrets === 'files') {
      const name = `${section}-url.secret`;
      files.push({ name, text: `${value}\n`, mode: 0o600 });
      environment.push({ name: `${variable}_FILE`, value: `${directory.replace(/\/$/, '')}/${name}` });
    } else environment.push({ name: variable, value: null });
    return `  # url: it holds a password, so it comes from ${variable}, or from the file that ${variable}_FILE names`;
  };
  const text = `# Waybill. Every key: waybill config reference. Check this file with: waybill config check
database:
${url('database', answers.databaseUrl)}
  schema: ${answers.schema}
broker:
${url('broker', answers.brokerUrl)}
relay:
  name: ${answers.relay}
  exchange: waybill.events
  # What is kept of a published message: trace (identity and times), full (the body too, so that it can be replayed), off.
  history: trace
  historyRetention: 7d
`;
  const secret = answers.secrets === 'inline';
  files.unshift({ name: CONFIG_FILE, text, mode: secret ? 0o600 : 0o644 });
  files.push(
    { name: SCHEMA_FILE, text: printMigrations(answers.schema), mode: 0o644 },
    { name: ROLES_FILE, text: printRoles({ schema: answers.schema }), mode: 0o644 },
  );
  return { files, environment };
}

/** What doctor finds with these servers, but for what is only there after the installation. */
export async function tryServers(config: Config): Promise<Finding[]> {
  const findings = await examine(config);
  return findings.filter(({ id, severity }) => severity !== 'ok' && id !== 'schema' && id !== 'grants');
}

/** Whether a finding means that a server was not to be used at all. */
export function isUnreachable({ id, severity }: Finding): boolean {
  return severity === 'fail' && (id === 'database' || id === 'broker');
}
