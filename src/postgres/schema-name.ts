import { WaybillError } from '../core/errors.js';
import { quoteIdentifier } from '../core/identity.js';

/** The schema that is used when none is configured. */
export const DEFAULT_SCHEMA = 'waybill';

/** Whether a name can be the schema: lower case, at most 41 bytes (names are derived from it), not PostgreSQL's own. */
function isSchemaName(name: string): boolean {
  return /^[a-z_][a-z0-9_]{0,40}$/.test(name) && !name.startsWith('pg_') && name !== 'information_schema';
}

/** The schema as a quoted identifier; throws WAYBILL_CONFIG_INVALID if the name cannot be one. */
export function quoteSchema(name: string): string {
  if (!isSchemaName(name)) {
    throw new WaybillError('WAYBILL_CONFIG_INVALID', `not a schema name: ${JSON.stringify(name)}`, {
      hint: 'Use 1 to 41 of a-z, 0-9 and _, not starting with a digit or pg_.',
    });
  }
  return quoteIdentifier(name);
}
