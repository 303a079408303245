import type { FreshDatabase } from './database.js';

/** One wait of a row: how long it was to last, and by how much its end was missed. */
export interface RetryTime {
  consumer: string;
  messageId: string;
  /** The attempt that came after it. */
  attempt: number;
  delayMs: number;
  /** From the due time to the claim that began the attempt. */
  lateMs: number;
  /** The same to the end of the attempt, as inbox_attempt or the row itself has it. */
  endedLateMs: number;
}

/** Has the database note when rows were due and when they were claimed: both are gone from the row afterwards. */
export async function noteRetryTimes(database: FreshDatabase): Promise<void> {
  await database.query(`
    create table public.noted_wait (inbox_seq bigint, attempt int, set_at timestamptz, due_at timestamptz);
    create table public.noted_claim (inbox_seq bigint, attempt int, at timestamptz);
    create function public.note_times() returns trigger language plpgsql as $$
    begin
      if new.status = 'waiting' then
        insert into public.noted_wait values (new.seq, new.failures + 1, clock_timestamp(), new.next_attempt_at);
      elsif new.status = 'running' then
        insert into public.noted_claim values (new.seq, new.failures + 1, clock_timestamp());
      end if;
      return null;
    end $$;
    create trigger note_times after update on waybill.inbox for each row
      when (old.status is distinct from new.status) execute function public.note_times();
  `);
}

/** What was noted, of attempts that are over. */
export function retryTimes(database: FreshDatabase): Promise<RetryTime[]> {
  return database.query<RetryTime>(`
    select i.consumer, i.message_id as "messageId", w.attempt,
      extract(epoch from w.due_at - w.set_at)::float8 * 1000 as "delayMs",
      extract(epoch from c.at - w.due_at)::float8 * 1000 as "lateMs",
      extract(epoch from coalesce(a.at, i.processed_at) - w.due_at)::float8 * 1000 as "endedLateMs"
    from public.noted_wait w
    join public.noted_claim c using (inbox_seq, attempt)
    join waybill.inbox i on i.seq = w.inbox_seq
    left join waybill.inbox_attempt a on a.inbox_seq = w.inbox_seq and a.number = w.attempt
    order by w.due_at`);
}

/** The value below which that share of the values lies. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? NaN;
}
