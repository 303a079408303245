/**
 * What a handler says of one message. `retry` and `not-yet` may ask for a delay of their own; without it the consumer's
 * schedule holds. Errors are texts for people, without bodies or secrets.
 */
export type Verdict =
  /** Applied; `result` is kept with the row. */
  | { kind: 'done'; result?: string }
  /** A temporary failure: spends an attempt. */
  | { kind: 'retry'; error: string; retryInMs?: number }
  /** Its data is not there yet: bounded by age, not by attempts. */
  | { kind: 'not-yet'; error: string; retryInMs?: number }
  /** It will never succeed: dead at once. */
  | { kind: 'never'; error: string }
  /** The consumer is broken, not the message: pause and probe, nothing is spent. */
  | { kind: 'broken'; error: string };
