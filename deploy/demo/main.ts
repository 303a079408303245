import { parseArgs } from 'node:util';
import { removeEveryScratch } from '../../test/support/servers/scratch.js';
import { Billing } from './billing.js';
import { Consumer } from './consumer.js';
import { Screen, seconds } from './screen.js';
import { Shop } from './shop.js';
import { Stage } from './stage.js';
import { playStory, statusText, type Cast } from './story.js';
import { kept, tallyLines } from './tally.js';

const INTERRUPTED = 130;

const keep = readArguments();
const screen = new Screen();
const leave = new AbortController();
let leftAtMs = 0;
const interrupted = new Promise<void>((resolve) => {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => {
      // A second signal ends it at once, and the servers' watchdogs clean up; but npm repeats a Ctrl-C within moments.
      if (leave.signal.aborted && performance.now() - leftAtMs > 500) process.exit(INTERRUPTED);
      if (leave.signal.aborted) return;
      leftAtMs = performance.now();
      leave.abort();
      resolve();
    });
  }
});
// The reader of a pipe may leave early.
process.stdout.on('error', () => process.exit(1));

/** The exit code, once the tally is known. */
let outcome: number | undefined;
const code = await Promise.race([play(), interrupted.then(() => outcome ?? INTERRUPTED)]);
if (leave.signal.aborted) screen.line('\nStopping the servers and removing their folders.');
screen.close();
await removeEveryScratch();
process.exit(code);

/** The whole demo; resolves with the exit code. */
async function play(): Promise<number> {
  let stage: Stage | undefined;
  try {
    screen.line('Waybill demo: a shop writes orders to PostgreSQL, a consumer hears of them from');
    screen.line('RabbitMQ, a billing service writes an invoice for each. Waybill is in between,');
    screen.line('and we break things to see if anything gets lost, or is billed twice.');
    screen.line();
    screen.step('Starting a PostgreSQL and a RabbitMQ of our own (10 to 30 seconds).');
    const began = performance.now();
    stage = await Stage.open();
    screen.step(
      `PostgreSQL ${stage.postgres.version} and RabbitMQ answer after ${seconds(performance.now() - began)}.`,
    );
    await stage.prepare();
    screen.step("Waybill's tables are installed: waybill migrate up.");
    const consumer = new Consumer(stage.rabbit.url());
    await consumer.start();
    await stage.startRelay();
    await stage.relayReads();
    screen.step('The relay runs as a process of its own: waybill run.');
    const billing = await Billing.prepare(stage.postgres, stage.rabbit);
    await billing.start();
    await billing.consumes();
    screen.step('A billing service with its own database and Waybill writes the invoices.');
    const cast = { stage, shop: new Shop(stage.applicationUrl), consumer, billing, screen };
    return await show(cast);
  } catch (error) {
    if (leave.signal.aborted) return INTERRUPTED;
    screen.line(`\nThe demo failed: ${error instanceof Error ? error.message : String(error)}`);
    if (stage) screen.line(`The relay's last log lines:\n${await stage.relayLog(12)}`);
    return 1;
  }
}

async function show(cast: Cast): Promise<number> {
  const { stage, consumer } = cast;
  const ticking = setInterval(() => screen.status(statusText(cast)), screen.statusEveryMs);
  try {
    const tally = await playStory(cast);
    clearInterval(ticking);
    const good = kept(tally);
    outcome = good ? 0 : 1;
    screen.line();
    for (const line of tallyLines(tally)) screen.line(line);
    screen.line();
    screen.line(good ? 'Nothing was lost.' : 'A PROMISE WAS BROKEN: please report this.');
    if (!good) screen.line(`The relay's last log lines:\n${await stage.relayLog(12)}`);
  } finally {
    clearInterval(ticking);
  }
  if (keep) await keepRunning(stage);
  else sayWhereToLook();
  await consumer.close();
  return outcome;

  async function keepRunning({ relayUrl, applicationUrl, rabbit, settingsFile, logFile }: Stage): Promise<void> {
    const play = new Shop(applicationUrl);
    play.rate = 2;
    play.start(1);
    for (const line of [
      '',
      'Still running, with two orders a second. Try in another terminal, from here:',
      '',
      `  . ${settingsFile}`,
      '  node dist/main.js status',
      '  node dist/main.js doctor',
      `  psql ${applicationUrl}`,
      `  tail -f ${logFile}`,
      '',
      `The order application   ${applicationUrl}`,
      `The relay               ${relayUrl}`,
      `RabbitMQ                ${rabbit.url()}`,
      '',
      'Ctrl-C here (or SIGTERM) stops everything and removes it.',
    ]) {
      screen.line(line);
    }
    await Promise.race([interrupted, play.ended]);
  }
}

function sayWhereToLook(): void {
  screen.line();
  screen.line('Where to look next:');
  screen.line('  npm run demo -- --keep      the same, and it stays for you to play with');
  screen.line('  node dist/main.js --help    the commands: run, status, doctor, migrate ...');
  screen.line('  README.md                   your own PostgreSQL and RabbitMQ in four commands');
}

function readArguments(): boolean {
  const usage = 'npm run demo [-- --keep]\n  --keep   leave everything running at the end, until Ctrl-C\n';
  try {
    const { values } = parseArgs({ options: { keep: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } });
    if (values.help) {
      process.stdout.write(usage);
      process.exit(0);
    }
    return values.keep ?? false;
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n${usage}`);
    process.exit(2);
  }
}
