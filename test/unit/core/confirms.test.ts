import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ConfirmTracker, type Outcome, type Return } from '../../../src/core/confirms.js';

type Step =
  | { kind: 'publish'; id: number }
  | { kind: 'ack' | 'nack'; tag: number; multiple: boolean }
  | { kind: 'return'; id: number }
  | { kind: 'lost' };

const ids = fc.nat({ max: 7 });
const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    { weight: 5, arbitrary: fc.record({ kind: fc.constant('publish' as const), id: ids }) },
    {
      weight: 5,
      arbitrary: fc.record({
        kind: fc.constantFrom('ack' as const, 'nack' as const),
        tag: fc.nat({ max: 40 }),
        multiple: fc.boolean(),
      }),
    },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant('return' as const), id: ids }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('lost' as const) }) },
  ),
  { maxLength: 100, size: 'max' },
);

interface ModelPublish {
  item: number;
  id: string;
  atMs: number;
  reason?: Return;
}

/** One slot a delivery tag, searched from the start each time. */
class Model {
  readonly #byTag: (ModelPublish | undefined)[] = [undefined];

  publish(publish: ModelPublish): number {
    return this.#byTag.push(publish) - 1;
  }

  return(id: string, reason: Return): boolean {
    const oldest = this.#byTag.find((each) => each?.id === id && !each.reason);
    if (oldest) oldest.reason = reason;
    return oldest !== undefined;
  }

  take(tag: number, multiple: boolean): ModelPublish[] {
    const taken: ModelPublish[] = [];
    for (const [known, publish] of this.#byTag.entries()) {
      if (!publish || !(known === tag || (multiple && (tag === 0 || known <= tag)))) continue;
      taken.push(publish);
      this.#byTag[known] = undefined;
    }
    return taken;
  }

  get outstanding(): ModelPublish[] {
    return this.#byTag.filter((each) => each !== undefined);
  }
}

test('F88, F89: acks, nacks and returns in any order, multiple or not, early, late or twice, settle each publish once', () => {
  fc.assert(
    fc.property(steps, (all) => {
      const tracker = new ConfirmTracker<number>();
      const model = new Model();
      for (const [n, step] of all.entries()) {
        const told: [number, Outcome][] = [];
        const settle = (item: number, outcome: Outcome): void => void told.push([item, outcome]);
        if (step.kind === 'publish') {
          const publish = { item: n, id: `id-${step.id}`, atMs: n };
          expect(tracker.published(n, publish.id, n)).toBe(model.publish(publish));
        } else if (step.kind === 'return') {
          const reason = { replyCode: 312, replyText: `NO_ROUTE ${n}` };
          expect(tracker.returned(`id-${step.id}`, reason)).toBe(model.return(`id-${step.id}`, reason));
        } else if (step.kind === 'lost') {
          expect(tracker.lost()).toEqual(model.take(0, true).map(({ item }) => item));
        } else if (step.kind === 'ack') {
          tracker.ack(step.tag, step.multiple, settle);
          expect(told).toEqual(
            model
              .take(step.tag, step.multiple)
              .map(({ item, reason }) => [item, reason ? { kind: 'returned', reason } : { kind: 'confirmed' }]),
          );
        } else {
          tracker.nack(step.tag, step.multiple, settle);
          expect(told).toEqual(model.take(step.tag, step.multiple).map(({ item }) => [item, { kind: 'nacked' }]));
        }
        expect(tracker.size).toBe(model.outstanding.length);
        expect(tracker.oldestAtMs).toBe(model.outstanding[0]?.atMs);
      }
    }),
    { numRuns: 1_000 },
  );
});

test('fact 36: two thousand confirms out of order leave nothing behind', () => {
  const tracker = new ConfirmTracker<number>();
  for (let n = 1; n <= 2_000; n += 1) tracker.published(n, `id-${n}`, n);
  const confirmed = new Set<number>();
  const settle = (item: number): void => void confirmed.add(item);
  for (let tag = 2_000; tag > 1_000; tag -= 1) tracker.ack(tag, false, settle);
  tracker.ack(1_500, true, settle);
  expect([tracker.size, confirmed.size]).toEqual([0, 2_000]);
});
