/** What a Node application imports: `import { publish, firstTime, InboxWorker } from 'waybill/client'`. */
export type { Handle, HandlingContext } from './attempt.js';
export { currentMessage } from './handling.js';
export { firstResult, firstTime, newer } from './idempotency.js';
export type { ReceivedMessage } from './message.js';
export { publish, type OutgoingMessage, type SchemaOption } from './publish.js';
export type { ClientPool, PooledClient, Queryable } from './queryable.js';
export { Never, NotYet, TryAgain } from './verdict.js';
export { InboxWorker, type InboxWorkerOptions, type WorkerEvent } from './worker.js';
