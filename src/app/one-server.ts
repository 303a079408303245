import { WaybillError } from '../core/errors.js';
import type { ReplicationIdentity } from '../postgres/identify.js';

/** Throws when the two URLs lead apart: a slot made on one server and looked for on another pins WAL where nobody looks. */
export function assertOneServer(sql: ReplicationIdentity, replication: ReplicationIdentity): void {
  if (replication.systemIdentifier === sql.systemIdentifier && replication.database === sql.database) return;
  throw new WaybillError(
    'WAYBILL_DATABASE_UNSUITABLE',
    `database.url leads to database ${sql.database} of cluster ${sql.systemIdentifier}, database.replicationUrl to database ${replication.database} of cluster ${replication.systemIdentifier}`,
    { hint: 'Both must lead to the same database of the same server: correct database.replicationUrl.' },
  );
}
