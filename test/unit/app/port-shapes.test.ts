import { expectTypeOf, test } from 'vitest';
import type * as ports from '../../../src/outbox/ports.js';
import type { WalEvent as PumpedEvent } from '../../../src/outbox/pump.js';
import type { WalEvent as DecodedEvent } from '../../../src/postgres/pgoutput.js';
import type { RelayStore } from '../../../src/postgres/relay-store.js';
import type { ReplicationStream } from '../../../src/postgres/stream.js';
import type { TableReader } from '../../../src/postgres/table-reader.js';
import type { BrokerConnection } from '../../../src/rabbitmq/connection.js';
import type { PublishChannel, PublishChannelEvents } from '../../../src/rabbitmq/publish-channel.js';

/**
 * The names of the port's members that the adapter does not really satisfy. Why not leave it to the assignment in the
 * composition root: methods are compared loosely there, so an adapter may ask for more than the pipeline gives.
 */
type Unsatisfied<Port, Adapter> = {
  [K in keyof Port]: K extends keyof Adapter ? (Satisfies<Port[K], Adapter[K]> extends true ? never : K) : K;
}[keyof Port];

type Satisfies<Wanted, Given> = [Wanted] extends [(...given: infer P) => infer R]
  ? Given extends (...taken: infer Q) => infer S
    ? [Loose<P>, S] extends [Loose<Q>, R]
      ? true
      : false
    : false
  : [Given] extends [Wanted]
    ? true
    : false;

/** Parameters as a record, so that a shorter list of an adapter still takes a longer one. */
type Loose<P extends unknown[]> = Omit<P, keyof unknown[]>;

// Checked by the compiler; what runs is empty.
test('what the stream brings has one shape in both rooms', () => {
  expectTypeOf<PumpedEvent>().toEqualTypeOf<DecodedEvent>();
});

test('the adapters take all that the pipeline gives them, and give all that it wants', () => {
  expectTypeOf<Unsatisfied<ports.Store, RelayStore>>().toBeNever();
  expectTypeOf<Unsatisfied<ports.Table, TableReader>>().toBeNever();
  expectTypeOf<Unsatisfied<ports.Stream, ReplicationStream>>().toBeNever();
  expectTypeOf<Unsatisfied<ports.PublishChannel, PublishChannel>>().toBeNever();
  expectTypeOf<Unsatisfied<ports.PublishConnection, BrokerConnection>>().toBeNever();
  expectTypeOf<ports.PublishChannelEvents>().toEqualTypeOf<PublishChannelEvents>();
});

test('no row shape of an adapter has a field that the pipeline does not know, or knows as something else', () => {
  type Settlement = Parameters<RelayStore['settle']>[0][number];
  type Hold = Parameters<RelayStore['hold']>[0][number];
  expectTypeOf<Exclude<keyof Settlement, keyof ports.Settlement>>().toBeNever();
  expectTypeOf<Exclude<keyof Hold, keyof ports.Hold>>().toBeNever();
  expectTypeOf<Hold['row']>().toEqualTypeOf<ports.Hold['row']>();
  expectTypeOf<Settlement['floorLsn']>().toEqualTypeOf<ports.Settlement['floorLsn']>();
  expectTypeOf<Hold['delayMs']>().toEqualTypeOf<ports.Hold['delayMs']>();
});

test('the comparison can fail', () => {
  interface Port {
    take(row: { a: string | null }): Promise<string>;
    size: number;
  }
  expectTypeOf<Unsatisfied<Port, Port>>().toBeNever();
  expectTypeOf<
    Unsatisfied<Port, { take(row: { a: string }): Promise<string>; size: number }>
  >().toEqualTypeOf<'take'>();
  expectTypeOf<
    Unsatisfied<Port, { take(row: { a: string | null; b: number }): Promise<string>; size: number }>
  >().toEqualTypeOf<'take'>();
  expectTypeOf<
    Unsatisfied<Port, { take(row: { a: string | null }): Promise<string | null>; size: number }>
  >().toEqualTypeOf<'take'>();
  expectTypeOf<Unsatisfied<Port, { take(): Promise<string>; size: string }>>().toEqualTypeOf<'size'>();
});
