import { randomUUID } from 'node:crypto';
import type { FreshDatabase } from './database.js';

/** A registered consumer and the rows that its receiver would have written. */
export class InboxRows {
  constructor(
    readonly database: FreshDatabase,
    readonly consumer: string,
  ) {}

  /** Registers the consumer as the daemon does; what is not given has its default. */
  async register(settings: Record<string, unknown> = {}): Promise<void> {
    const all = JSON.stringify([{ name: this.consumer, queue: this.consumer, handler: 'store', ...settings }]);
    await this.database.query('select * from waybill.register_consumers($1)', [all]);
  }

  /** Receives messages and gives their ids. */
  async receive(...messages: Record<string, unknown>[]): Promise<string[]> {
    const all = messages.map((given) => {
      const { body = '{"n": 1}', ...rest } = given as { body?: string | Buffer };
      return { message_id: randomUUID(), type: 'order.paid', ...rest, bytes: Buffer.from(body) };
    });
    const batch = all.map(({ bytes, ...message }) => ({ ...message, size: bytes.length }));
    const bodies = Buffer.concat(all.map(({ bytes }) => bytes));
    await this.database.query('select * from waybill.inbox_receive($1, $2, $3)', [
      this.consumer,
      JSON.stringify(batch),
      bodies,
    ]);
    return all.map(({ message_id: id }) => id);
  }

  wake(): Promise<unknown> {
    return this.database.query('select waybill.inbox_wake($1)', [this.consumer]);
  }

  /** How many rows are in each status. */
  async counts(): Promise<Record<string, number>> {
    const rows = await this.database.query<{ status: string; count: number }>(
      'select status, count(*)::int as count from waybill.inbox where consumer = $1 group by status',
      [this.consumer],
    );
    return Object.fromEntries(rows.map(({ status, count }) => [status, count]));
  }

  async look(messageId: string): Promise<Record<string, unknown>> {
    const rows = await this.database.query(
      `select status, failures, abandoned, last_error, result, dead_reason,
         (extract(epoch from next_attempt_at - clock_timestamp()) * 1000)::int as due_in_ms
       from waybill.inbox where consumer = $1 and message_id = $2`,
      [this.consumer, messageId],
    );
    return rows[0] ?? {};
  }

  /** Moves time: leases are over, what waits is due. */
  async pass(): Promise<void> {
    await this.database.query(
      `update waybill.inbox set lease_until = case when status = 'running' then clock_timestamp() end,
         next_attempt_at = case when status = 'waiting' then clock_timestamp() end
       where consumer = $1 and status in ('running', 'waiting')`,
      [this.consumer],
    );
  }
}
