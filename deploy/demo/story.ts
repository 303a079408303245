import { setTimeout as delay } from 'node:timers/promises';
import { until } from '../../test/support/waiting.js';
import type { Consumer } from './consumer.js';
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
  screen: Screen;
}

/** The orders, the three faults, and the count at the end. */
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

  screen.line();
  screen.step('The writers stop; the last messages arrive.');
  shop.rate = 0;
  await shop.close();
  await everythingArrives(cast);
  return tallyUp(shop, cast.consumer, await shop.committedIds());
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

/** Breaks and mends something, and waits until messages flow as before. */
async function breakSomething({ shop, consumer, screen, stage }: Cast, breakAndMend: () => Promise<void>) {
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
  };
  await until(() => (check(), consumer.arrivals.size > arrivedBefore), {
    withinMs: 60_000,
    what: 'messages to flow again',
  });
  const flowsMs = performance.now();
  await until(() => (check(), waiting(shop, consumer) < FEW), { withinMs: 60_000, what: 'the relay to catch up' });
  screen.step(
    `All runs again: messages flowed after ${seconds(flowsMs - mendedMs)}, ` +
      `the ${count(most)} waiting ones\n       were sent after ${seconds(performance.now() - mendedMs)}.`,
  );
  await delay(1_000);
  shop.calm = true;
  await delay(3_000);
}

/** Waits until nothing is on its way: all rows published and removed, and the queue empty. */
async function everythingArrives({ stage, shop, consumer }: Cast): Promise<void> {
  const nothingUnderWay = async () =>
    waiting(shop, consumer) === 0 && (await stage.rowsInOutbox()) === 0 && (await consumer.waitingInQueue()) === 0;
  try {
    await until(nothingUnderWay, { withinMs: 60_000, everyMs: 100, what: 'everything to arrive' });
  } catch {
    // The tally says what is missing.
  }
}
