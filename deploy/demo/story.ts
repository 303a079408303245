import { setTimeout as delay } from 'node:timers/promises';
import { until } from '../../test/support/waiting.js';
import type { Billing } from './billing.js';
import type { Consumer } from './consumer.js';
import { Neighbour, type Mischief } from './neighbour.js';
import { count, seconds, type Screen } from './screen.js';
import type { Shop } from './shop.js';
import type { Stage } from './stage.js';
import { tallyUp, type Tally } from './tally.js';

const ORDERS_PER_SECOND = 200;
const WRITERS = 6;
/** Fewer than this many messages under way is the normal state of things. */
const FEW = 25;

/** Everybody who takes part. */
export interface Cast {
  stage: Stage;
  shop: Shop;
  consumer: Consumer;
  billing: Billing;
  screen: Screen;
}

/** The orders, the faults, and the count at the end. */
export async function playStory(cast: Cast): Promise<Tally> {
  const { stage, shop, screen } = cast;
  shop.start(WRITERS);
  shop.rate = ORDERS_PER_SECOND;
  screen.step(`${WRITERS} writers place ${ORDERS_PER_SECOND} orders a second and roll one in ten back.`);
  screen.remark('Each order and its message are written in one transaction, so both');
  screen.remark('are there or neither. The relay sends on what was committed.');
  await delay(8_000);

  await breakSomething(cast, async () => {
    screen.step('1. The relay is killed (kill -9) and started again 2 seconds later.');
    screen.remark('Why it is safe: a message stays a row in PostgreSQL until RabbitMQ has');
    screen.remark('confirmed it. What was under way is sent again, under the same id.');
    await stage.killRelay();
    await delay(2_000);
    await stage.startRelay();
  });
  await breakSomething(cast, async () => {
    screen.step('2. RabbitMQ is killed (kill -9) and started again; orders go on.');
    screen.remark('Why it is safe: the application needs PostgreSQL only. Messages wait');
    screen.remark('in its table, and the relay connects again by itself.');
    await stage.rabbit.kill9();
    await delay(1_000);
    await stage.rabbit.start();
  });
  await breakSomething(cast, async () => {
    screen.step("3. The relay is killed and its place in PostgreSQL's log (the replication");
    screen.remark('slot) is dropped, as can happen in a failover.');
    screen.remark('Why it is safe: the log only tells the relay at once what is new. What');
    screen.remark('counts is the table, and the relay reads that first.');
    await stage.killRelay();
    await stage.dropSlot();
    await delay(1_000);
    await stage.startRelay();
  });

  await breakSomething(cast, async () => {
    screen.step('4. The Waybill beside the billing service is killed and started again.');
    screen.remark('Why it is safe: an invoice and the note that its message was applied are');
    screen.remark('committed together, and only then the message leaves the queue.');
    await cast.billing.kill();
    await delay(1_000);
    await cast.billing.start();
  });
  const mischief = await neighbourMisbehaves(cast);

  screen.line();
  screen.step('The writers stop; the last messages arrive.');
  shop.rate = 0;
  await shop.close();
  await everythingArrives(cast);
  return tallyUp(cast, mischief);
}

/** The figures under the story. */
export function statusText({ shop, consumer }: Cast): string {
  return [
    `committed ${count(shop.committed.size, 6)}`,
    `rolled back ${count(shop.rolledBack.size, 5)}`,
    `arrived ${count(consumer.arrivals.size, 6)}`,
    `waiting ${count(waiting(shop, consumer), 5)}`,
  ].join('   ');
}

function waiting(shop: Shop, consumer: Consumer): number {
  return Math.max(0, shop.committed.size - consumer.arrivals.size);
}

/** Everything that a receiver must expect, in a few seconds. */
async function neighbourMisbehaves({ stage, shop, consumer, billing, screen }: Cast): Promise<Mischief> {
  const neighbour = new Neighbour(stage.rabbit.url());
  screen.line();
  screen.step('5. A neighbour sends 20 old messages again, one with another content, three');
  screen.remark('orders that cost "free!", and payments for five orders that come later.');
  screen.remark('Why it is safe: each id takes effect once; what cannot be right is set');
  screen.remark('aside with its error after a few attempts; what comes too early waits.');
  const early = await shop.reserve(5);
  await neighbour.payEarly(early);
  const mischief = await neighbour.misbehave(consumer.arrivals);
  await until(async () => (await billing.ledger()).putOff === early.length, {
    withinMs: 60_000,
    what: 'the early payments to wait',
  });
  await shop.placeReserved(early);
  const beganMs = performance.now();
  const settled = async () => {
    if (billing.ending !== undefined) throw new Error(`the consumer ended by itself: ${billing.ending}`);
    const { paid, dead } = await billing.ledger();
    return paid === early.length && dead.reduce((sum, each) => sum + each.count, 0) === 4;
  };
  await until(settled, { withinMs: 60_000, everyMs: 100, what: 'the neighbour to be dealt with' });
  screen.step(
    `The payments found their orders, four messages are set aside: after ${seconds(performance.now() - beganMs)}.`,
  );
  return { ...mischief, early: early.length };
}

/** Breaks and mends something, and waits until messages flow as before. */
async function breakSomething({ shop, consumer, billing, screen, stage }: Cast, breakAndMend: () => Promise<void>) {
  shop.calm = false;
  screen.line();
  // What was committed in calm times arrives in calm times.
  await delay(250);
  await breakAndMend();
  const mendedMs = performance.now();
  const most = waiting(shop, consumer);
  const arrivedBefore = consumer.arrivals.size;
  const check = () => {
    if (stage.relayEnding) throw new Error(`the relay ended by itself: ${stage.relayEnding}`);
    if (billing.ending !== undefined) throw new Error(`the consumer ended by itself: ${billing.ending}`);
  };
  await until(() => (check(), consumer.arrivals.size > arrivedBefore), {
    withinMs: 60_000,
    what: 'messages to flow again',
  });
  const flowsMs = performance.now();
  await until(() => (check(), waiting(shop, consumer) < FEW), { withinMs: 60_000, what: 'the relay to catch up' });
  const invoiced = async () => (check(), shop.committed.size - (await billing.invoices()) < FEW);
  await until(invoiced, { withinMs: 60_000, everyMs: 50, what: 'billing to catch up' });
  screen.step(
    `All runs again: messages flowed after ${seconds(flowsMs - mendedMs)}, ` +
      `the ${count(most)} waiting ones\n       were sent and billed after ${seconds(performance.now() - mendedMs)}.`,
  );
  await delay(1_000);
  shop.calm = true;
  await delay(3_000);
}

/** Waits until nothing is on its way: all rows published and removed, and the queue empty. */
async function everythingArrives({ stage, shop, consumer, billing }: Cast): Promise<void> {
  const nothingUnderWay = async () =>
    waiting(shop, consumer) === 0 &&
    (await stage.rowsInOutbox()) === 0 &&
    (await consumer.waitingInQueue()) === 0 &&
    (await billing.invoices()) >= shop.committed.size &&
    (await billing.ledger()).unfinished === 0;
  try {
    await until(nothingUnderWay, { withinMs: 60_000, everyMs: 100, what: 'everything to arrive' });
  } catch {
    // The tally says what is missing.
  }
}
