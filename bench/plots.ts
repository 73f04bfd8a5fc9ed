/** The results as pictures: SVG that takes its text colour from the reader's colour scheme. */
import { parse, View } from 'vega';
import { compile, type TopLevelSpec } from 'vega-lite';
import { ratio } from './measures.ts';
import type { Results } from './report.ts';
import { contestants, type Name } from './servers.ts';

/** Legible on white and on black. */
const COLOURS: Record<Name, string> = {
  relay: '#2f81f7',
  bare: '#8b949e',
  ws: '#d29922',
  peerjs: '#db61a2',
};
const names = Object.keys(contestants) as Name[];
const labels = names.map((name) => contestants[name].label);
const colour = {
  field: 'server',
  type: 'nominal',
  scale: { domain: labels, range: names.map((name) => COLOURS[name]) },
  legend: null,
} as const;

export async function draw(spec: Omit<TopLevelSpec, 'config'>): Promise<string> {
  const { spec: vega } = compile({
    ...spec,
    config: {
      background: 'transparent',
      font: 'system-ui, sans-serif',
      view: { stroke: null },
      title: { color: 'currentColor', anchor: 'start', fontSize: 13 },
      header: { labelColor: 'currentColor', titleColor: 'currentColor' },
      axis: {
        labelColor: 'currentColor',
        titleColor: 'currentColor',
        titleFontWeight: 'normal',
        domainColor: 'currentColor',
        domainOpacity: 0.3,
        ticks: false,
        labelPadding: 6,
        gridColor: 'currentColor',
        gridOpacity: 0.12,
      },
      text: { color: 'currentColor' },
    },
  } as TopLevelSpec);
  const svg = await new View(parse(vega), { renderer: 'none' }).toSVG();
  const style =
    '<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>';
  return svg.replace(/(<svg[^>]*>)/, `$1${style}`);
}

/** Bars that say how often the cost of bare Bun each server takes. */
function bars(title: string, rows: { quantity: string; server: string; times: number }[]) {
  return draw({
    title,
    data: { values: rows },
    facet: {
      row: {
        field: 'quantity',
        sort: rows.map(({ quantity }) => quantity),
        title: null,
        header: { labelOrient: 'top', labelAnchor: 'start', labelAngle: 0, labelFontSize: 11 },
      },
    },
    spec: {
      width: 380,
      height: { step: 20 },
      encoding: {
        y: { field: 'server', type: 'nominal', sort: labels, title: null },
        x: {
          field: 'times',
          type: 'quantitative',
          title: 'times bare Bun (less is better)',
          scale: { domainMin: 0 },
        },
      },
      layer: [
        { mark: { type: 'bar', height: 13 }, encoding: { color: colour } },
        {
          mark: { type: 'text', align: 'left', dx: 4 },
          encoding: { text: { field: 'times', format: '.2f' } },
        },
      ],
    },
  } as Omit<TopLevelSpec, 'config'>);
}

/** Every plot that these results allow, by file name. */
export async function plots(results: Results): Promise<Record<string, string>> {
  const drawn: Record<string, string> = {};
  const costs = [
    ['pairingCpu', 'CPU per pairing'],
    ['frameCpu', 'CPU per frame'],
    ['waitingRss', 'RSS per waiting session'],
  ].flatMap(([key = '', quantity = '']) =>
    names.map((name) => ({
      quantity,
      server: contestants[name].label,
      times: ratio(results[key]?.samples[name], results[key]?.samples.bare),
    })),
  );
  drawn['cost.svg'] = await bars('What a server spends', costs);

  const started = results.start?.samples ?? {};
  const starts = names.map((name) => ({
    quantity: 'from exec to the first /health',
    server: contestants[name].label,
    times: ratio(started[name], started.bare),
  }));
  drawn['start.svg'] = await bars('How long a start takes', starts);

  const waiting = names.flatMap((name) => {
    const samples = results[`waiting.${name}`]?.samples ?? {};
    return Object.entries(samples).map(([level, all]) => ({
      server: contestants[name].label,
      waiting: Number(level).toLocaleString('en'),
      times: ratio(all, samples['0']),
    }));
  });
  drawn['waiting.svg'] = await draw({
    title: 'A pairing while others wait',
    width: 380,
    height: 180,
    data: { values: waiting },
    encoding: {
      x: {
        field: 'waiting',
        type: 'ordinal',
        sort: null,
        title: 'sessions waiting',
        axis: { labelAngle: 0 },
      },
      y: {
        field: 'times',
        type: 'quantitative',
        title: 'times its CPU with none waiting',
        scale: { domainMin: 0 },
      },
      color: {
        ...colour,
        legend: { title: null, labelColor: 'currentColor', symbolType: 'circle' },
      },
    },
    mark: { type: 'line', point: true },
  } as Omit<TopLevelSpec, 'config'>);
  return drawn;
}
