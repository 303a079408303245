import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import {
  LABEL_VALUES,
  METRICS,
  type CounterName,
  type GaugeName,
  type HistogramName,
  type LabelsOf,
  type MetricDefinition,
  type MetricName,
} from './metrics.js';

/** What the labels that come from the configuration may say; fixed for the life of the process. */
export interface ConfiguredLabels {
  relay: readonly string[];
  consumer: readonly string[];
  version: readonly string[];
}

type Labels = Readonly<Record<string, string>>;

/**
 * The metrics of one process, registered from the table. Bounded: a label value that is neither configured nor in the
 * table's lists is a programmer's error and throws, so the number of series is known from the start.
 */
export class Metrics {
  readonly #registry = new Registry();
  readonly #counters = new Map<string, Counter>();
  readonly #gauges = new Map<string, Gauge>();
  readonly #histograms = new Map<string, Histogram>();
  readonly #allowed: Readonly<Record<string, ReadonlySet<string>>>;
  readonly #collectors: (() => void)[] = [];

  constructor(configured: ConfiguredLabels, parts: ReadonlySet<MetricDefinition['of']>) {
    const lists = { ...LABEL_VALUES, ...configured };
    this.#allowed = Object.fromEntries(Object.entries(lists).map(([name, values]) => [name, new Set(values)]));
    for (const [name, definition] of Object.entries<MetricDefinition>(METRICS)) {
      if (parts.has(definition.of)) this.#register(name, definition);
    }
  }

  #register(name: string, { type, help, labels, buckets }: MetricDefinition): void {
    const common = { name, help, labelNames: [...labels], registers: [this.#registry] };
    if (type === 'counter') this.#counters.set(name, new Counter(common));
    else if (type === 'gauge') this.#gauges.set(name, new Gauge(common));
    else this.#histograms.set(name, new Histogram({ ...common, buckets: [...(buckets ?? [])] }));
  }

  /** Adds to a counter. */
  add<N extends CounterName>(name: N, labels: LabelsOf<N>, amount = 1): void {
    this.#find(this.#counters, name, labels).inc(labels, amount);
  }

  /** Sets a counter that is kept elsewhere; it never decreases there. */
  total<N extends CounterName>(name: N, labels: LabelsOf<N>, value: number): void {
    const counter = this.#find(this.#counters, name, labels);
    counter.remove(labels);
    counter.inc(labels, value);
  }

  /** Sets a gauge; undefined takes it out, because a value that is not known must not look like one. */
  set<N extends GaugeName>(name: N, labels: LabelsOf<N>, value: number | undefined): void {
    const gauge = this.#find(this.#gauges, name, labels);
    if (value === undefined) gauge.remove(labels);
    else gauge.set(labels, value);
  }

  /** What notes one value in a histogram; made once, called often. */
  observer<N extends HistogramName>(name: N, labels: LabelsOf<N>): (value: number) => void {
    const histogram = this.#find(this.#histograms, name, labels);
    // A series that begins with its first value hides that value from `rate`.
    histogram.zero(labels);
    const child = histogram.labels(labels);
    return (value) => child.observe(value);
  }

  /** Called before each showing, to bring values up to date from memory; must not wait. */
  beforeShowing(collect: () => void): void {
    this.#collectors.push(collect);
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  /** Everything in Prometheus' text format. */
  show(): Promise<string> {
    for (const collect of this.#collectors) collect();
    return this.#registry.metrics();
  }

  #find<T>(kind: ReadonlyMap<string, T>, name: MetricName, labels: Labels): T {
    const metric = kind.get(name);
    if (!metric) throw new Error(`metric ${name} is of a part that does not run`);
    for (const [label, value] of Object.entries(labels)) {
      if (this.#allowed[label]?.has(value) !== true)
        throw new Error(`metric ${name}: label ${label} may not be ${value}`);
    }
    return metric;
  }
}
