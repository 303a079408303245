import type { Config } from '../config/load.js';
import { publicationName } from '../core/identity.js';
import type { TableInspection } from '../postgres/inspect-server.js';
import type { RelayEntry } from '../postgres/inspect.js';
import type { PublicationState } from '../postgres/relay-record.js';
import { fail, ok, warn, type Finding } from './doctor-findings.js';

/** What the checks of the installed schema are made from. */
export interface SchemaEvidence {
  schemaVersion: number;
  publication: PublicationState | undefined;
  table: TableInspection;
  relays: RelayEntry[];
  systemIdentifier: string | null;
}

/** Every check of Waybill's own objects; pure. */
export function checkSchemaObjects(evidence: SchemaEvidence, config: Config): Finding[] {
  if (!config.relay.enabled) return [version(evidence, config)];
  const checks = [version, publication, grants, rowSecurity, columns, children, relays, identity, ownDeletes];
  return checks.flatMap((check) => check(evidence, config));
}

function version({ schemaVersion }: SchemaEvidence, { database }: Config): Finding {
  return ok('schema', `schema ${database.schema} is at version ${schemaVersion}`);
}

function publication({ publication: found }: SchemaEvidence, { database, relay }: Config): Finding[] {
  if (relay.source === 'table') return [];
  const id = 'publication';
  const name = publicationName(database.schema);
  const mend = `drop publication "${name}"; select ${database.schema}.ensure_publication();`;
  if (!found) {
    return [fail(id, `publication ${name} does not exist`, `select ${database.schema}.ensure_publication();`)];
  }
  if (!found.hasOutbox) return [fail(id, `publication ${name} does not hold the outbox`, mend)];
  if (!found.sendsInserts) return [fail(id, `publication ${name} does not send inserts`, mend)];
  if (found.rowFilter !== null)
    return [fail(id, `publication ${name} has a row filter: some rows are never sent`, mend)];
  if (found.missingColumns.length > 0) {
    const what = `publication ${name} sends no column ${found.missingColumns.join(', ')}: a column list, or dropped`;
    return [fail(id, what, `Give the table its columns back; ${mend}`)];
  }
  return [ok(id, `publication ${name} sends every insert of the outbox`)];
}

function grants({ table }: SchemaEvidence): Finding {
  if (table.missingGrants.length === 0) return ok('grants', 'the role has the grants of a relay');
  return fail(
    'grants',
    `the role lacks: ${table.missingGrants.join(', ')}`,
    'apply the roles as the owner: waybill migrate print --roles | psql (sql/roles.sql), and connect as the relay role',
  );
}

function rowSecurity({ table }: SchemaEvidence, { database }: Config): Finding[] {
  const mend = `alter table ${database.schema}.outbox disable row level security;`;
  if (table.rowSecurityActive) {
    return [fail('row-security', 'row level security hides rows of the outbox from this role', mend)];
  }
  if (table.rowSecurity) return [warn('row-security', 'row level security is on for the outbox', mend)];
  return [];
}

function columns({ table }: SchemaEvidence): Finding[] {
  if (table.foreignColumns.length === 0) return [];
  return [ok('own-columns', `columns of your own are ignored: ${table.foreignColumns.join(', ')}`)];
}

function children({ table }: SchemaEvidence): Finding[] {
  if (table.children.length === 0) return [];
  const said = `rows written to ${table.children.join(', ')} directly are not published by the WAL`;
  return [warn('children', said, 'write to the outbox itself, and take the inheritance away')];
}

function relays({ relays: found }: SchemaEvidence, { relay }: Config): Finding[] {
  const others = found.map(({ name }) => name).filter((name) => name !== relay.name);
  if (others.length === 0) return [];
  return [
    fail(
      'second-relay',
      `the schema also has the relay ${others.join(', ')}; one schema has one relay`,
      `set relay.name: ${others[0] ?? ''}, or end that one with: waybill relay drop ${others[0] ?? ''}`,
    ),
  ];
}

function identity({ relays: found, systemIdentifier }: SchemaEvidence, { relay }: Config): Finding[] {
  const stored = found.find(({ name }) => name === relay.name)?.systemIdentifier ?? null;
  if (stored === null || systemIdentifier === null) return [];
  if (stored === systemIdentifier) return [ok('identity', 'it is the PostgreSQL cluster that the relay worked with')];
  return [
    fail(
      'identity',
      `the relay worked with PostgreSQL cluster ${stored}, this is ${systemIdentifier}: a copy, or an upgrade`,
      `if it is to publish from here on: waybill relay adopt --expect ${systemIdentifier}`,
    ),
  ];
}

function ownDeletes({ relays: found }: SchemaEvidence, { database, relay }: Config): Finding[] {
  const record = found.find(({ name }) => name === relay.name);
  if (!record?.insertThenDeleteSeen) return [];
  const said = `applications delete rows themselves: those not published yet are in slot ${record.slot ?? '?'} alone, and are lost with it`;
  const unset = `update ${database.schema}.relay set insert_then_delete_seen = false;`;
  return [ok('own-deletes', `${said} (if none does it any more: ${unset})`)];
}
