import { AsyncLocalStorage } from 'node:async_hooks';
import type { ReceivedMessage } from './message.js';

const handled = new AsyncLocalStorage<ReceivedMessage>();

/** Runs a handler so that everything it starts knows which message it handles. */
export function whileHandling<T>(message: ReceivedMessage, call: () => Promise<T>): Promise<T> {
  return handled.run(message, call);
}

/** The message that a worker handles right now in this chain of calls; undefined outside of a handler. */
export function currentMessage(): ReceivedMessage | undefined {
  return handled.getStore();
}
