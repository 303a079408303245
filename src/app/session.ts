import type { Config } from '../config/load.js';
import { WaybillError } from '../core/errors.js';
import type { Unusable } from '../core/usable-host.js';
import { closeQuietly, type connectSql, type DatabaseEndpoint } from '../postgres/connect.js';
import { toDatabaseError } from '../postgres/errors.js';
import { checkSchema } from '../postgres/migrations.js';
import { connectToPrimary } from '../postgres/primary.js';
import { systemClock, within } from '../runtime/clock.js';
import { databaseEndpoints } from './endpoints.js';
import { operatorName } from './operator-name.js';

/** A connection as the adapter gives it. */
export type SqlClient = Awaited<ReturnType<typeof connectSql>>;

interface Limits {
  lockTimeoutMs: number;
  statementTimeoutMs: number;
  /** For all of the work. A server that is stopped answers nothing, not even that a statement took too long. */
  workTimeoutMs: number;
}

/** Connects for one short piece of work and closes again, whatever the work does. Never waits longer than its limits. */
export async function withDatabase<T>(
  database: Config['database'],
  limits: Limits,
  work: (client: SqlClient, server: DatabaseEndpoint) => Promise<T>,
  onUnusable: (unusable: Unusable) => void = () => undefined,
): Promise<T> {
  const { client, server } = await connectToPrimary(databaseEndpoints(database), {
    applicationName: 'waybill',
    // A connection that dies fails the statement that waits for it; there is nobody else to tell.
    onError: () => undefined,
    limits: { ...limits, operator: operatorName() },
    onUnusable,
  });
  const tooLate = Symbol('too late');
  try {
    const result = await within(systemClock, work(client, server), limits.workTimeoutMs, tooLate);
    if (result !== tooLate) return result;
    throw new WaybillError('WAYBILL_DATABASE_UNAVAILABLE', 'PostgreSQL took the connection and then did not answer.', {
      hint: 'The server is overloaded, stopped or cut off; look at it on its own machine.',
    });
  } finally {
    closeQuietly(client);
  }
}

const OPERATOR_LIMITS = { lockTimeoutMs: 5_000, statementTimeoutMs: 60_000 };
const OPERATOR_WORK_MS = 150_000;

/** The work of an operator's command on an installed schema; what goes wrong is told as what it was `doing`. */
export function operatorWork<T>(
  database: Config['database'],
  doing: string,
  act: (client: SqlClient) => Promise<T>,
  workTimeoutMs = OPERATOR_WORK_MS,
): Promise<T> {
  return withDatabase(database, { ...OPERATOR_LIMITS, workTimeoutMs }, async (client) => {
    try {
      await checkSchema(client, { schema: database.schema });
      return await act(client);
    } catch (error) {
      throw toDatabaseError(error, doing);
    }
  });
}
