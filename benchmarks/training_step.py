"""A training step next to the original's recipe: `OMP_NUM_THREADS=2 python benchmarks/training_step.py --out FILE`.

The study reads nbs/results/training_step.json. BERT-base width and depth with random weights, 8 clips a batch, text
lengths of the released validation split. The original's recipe pads every text to 500 tokens, video to 36 and audio to
63, keeps all attentions and hidden states, and computes attention eagerly; this library packs batches of similar
length. They take their steps in turn, round after round, with a matrix product at either end of a round, so that other
load of the machine affects all of them. Each has a process of its own in each round, which has the machine to itself:
next to idle processes that hold much memory, a step takes longer. The first step of a process does not count.
The original's recipe is measured twice: next to float32, and next to bfloat16. bfloat16 is `--precision bfloat16` of
the commands; checkpointing is that with `--gradient-checkpointing`. `--quick` takes a tiny network, to see that
everything runs.
"""
import argparse
import json
import subprocess
import sys

import numpy as np
import torch
import torch.nn.functional as F
from steps import (clips_of, machine, matrix_product, peak_memory, released_lengths, spread_batches, timed,
                   where_time_goes)
from torch import nn
from torch.amp import autocast
from torch.profiler import record_function

from hiccap.clips import MODALITIES
from hiccap.losses import MultiTaskLoss
from hiccap.model import CONCATENATED, HICCAP, HICCAPConfig
from hiccap.padding import collate
from hiccap.tasks import Task
from hiccap.training import checkpoint_gradients

TASKS = [Task('binary')]
STEPS = dict(upstream=1, hiccap=2, frozen=4, bfloat16=4, checkpointing=4, frozen_bfloat16=8)  # of a round
FROZEN = 'frozen', 'frozen_bfloat16'
HALF = 'bfloat16', 'checkpointing', 'frozen_bfloat16'
GROUPS = ('hiccap', 'frozen'), HALF  # measured in turn with the original's recipe
FULL = dict(text=500, video=36, audio=63)
BERT = dict(num_hidden_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=3072)
SMALL = dict(num_hidden_layers=2, hidden_size=48, num_attention_heads=12, intermediate_size=96, vocab_size=30522)


def config(quick, upstream=False, **kw):
    bert = dict(SMALL if quick else BERT)
    if kw.get('dropout') == 0: bert |= dict(hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
    return (lambda **o: HICCAPConfig.upstream('binary', **o) if upstream else HICCAPConfig(**o))(
        text=dict(kind='tokens', config=bert), width=bert['hidden_size'], **kw)


class Recipe(nn.Module):
    """The original's way through this library's network.

    Everything is padded, attention is eager, and all that BERT can return is kept until the forward pass ends"""
    def __init__(self, net):
        super().__init__()
        self.net = net
        net.encoders['text'].backbone.set_attn_implementation('eager')

    def attend(self, a, x, context, penalty):
        "Query, key and value projected at each call, the scores and their softmax kept"
        q, k, v = (
            o.unflatten(-1, (a.heads, -1)).transpose(1, 2) for o in (a.query(x), a.key(context), a.value(context)))
        weights = F.dropout((q @ k.transpose(-1, -2)/q.shape[-1]**.5 + penalty).softmax(-1), a.dropout, self.training)
        return (weights @ v).transpose(1, 2).flatten(2)

    def forward(self, x):
        n, states = self.net, {}
        outputs = n.encoders['text'].backbone(x['text'], output_attentions=True, output_hidden_states=True)
        states['text'] = outputs.last_hidden_state
        for m in ('video', 'audio'): states[m] = n.encoders[m].states(n.encoders[m].lstm(x[m])[0])
        penalty = {m: ((~x[f'{m}_mask']).float()*-10000)[:, None, None] for m in MODALITIES}
        pooled = {}
        for m, branch in n.fusion.branches.items():
            h = states[m]
            for norm, c in zip(branch.norms, n.config.contexts[m]):
                h = norm(self.attend(branch.attention, h, states[c], penalty[c]))
            h = h + states[m]
            pool = n.pools[m]
            alpha = (torch.tanh(pool.u(h)) @ pool.v).exp() + 1e-10
            pooled[m] = pool.norm(((alpha/alpha.sum(1, keepdim=True))[..., None]*h).sum(1))
        x = torch.cat([pooled[m] for m in CONCATENATED], 1)
        return {t.name: head(x) for t, head in zip(n.tasks, n.heads.values())}


def operations(model, clips, frozen=False):
    "Floating-point operations of a training step over the real positions of clips: forward, and twice that backward"
    c, bert = model.config, model.encoders['text'].backbone.config
    D, lengths = c.width, [{m: len(getattr(o, m)) for m in MODALITIES} for o in clips]
    layer = 4*bert.hidden_size**2 + 2*bert.hidden_size*bert.intermediate_size
    total = 0
    for n in lengths:
        if not frozen: total += bert.num_hidden_layers*(2*layer*n['text'] + 4*n['text']**2*bert.hidden_size)
        for m in ('video', 'audio'):
            total += (
                2
                * n[m]
                * (sum(w.numel() for k, w in model.encoders[m].lstm.named_parameters() if 'weight' in k)
                   + model.encoders[m].project[0].weight.numel())
            )
        for m in MODALITIES:
            total += (2 * D * D * (2 * n[m] + sum(2 * n[o] for o in c.contexts[m]))
                      + sum(4 * n[m] * n[o] * D for o in c.contexts[m]) + 2 * D * D * n[m])
        total += 2*sum(p.numel() for p in model.heads.parameters())
    return 3*total


class Trainer:
    "A model in the middle of training; mixed precision is entered as `hiccap.learner.DevicePrecision` does"
    def __init__(self, model, opt, half=False):
        self.model, self.opt, self.loss_func, self.half = model.train(), opt, MultiTaskLoss(TASKS), half

    def step(self, batch):
        with record_function('forward'), autocast('cpu', torch.bfloat16, enabled=self.half):
            loss = self.loss_func(self.model(batch[0]), batch[1])
        with record_function('backward'): loss.backward()
        with record_function('optimizer'):
            self.opt.step()
            self.opt.zero_grad(set_to_none=True)
        return loss.item()


def measure(name, quick, data, rounds, i):
    """One recipe, alone in this process, in round `i`: how long its steps took, and its memory.

    In the last round also where the time goes"""
    rng, lengths = np.random.default_rng(0), spread_batches(released_lengths(data), 8, rounds*STEPS[name])
    lengths = [lengths[k] for k in in_rounds(rounds, STEPS[name])]
    if quick: lengths = [n.clip(2, 40) for n in lengths]
    hidden = (SMALL if quick else BERT)['hidden_size']
    sets = [clips_of(n, rng, TASKS, hidden=hidden if name in FROZEN else None) for n in lengths]
    if name == 'upstream':
        model = Recipe(HICCAP(config(quick, True), TASKS, seed=0))
        trainer = Trainer(model, torch.optim.Adam(model.parameters(), lr=1e-5))
        batches = [collate(o, TASKS, 'left', FULL) for o in sets]
    else:
        model = HICCAP(config(quick), TASKS, seed=0)
        if name in FROZEN: model.encoders['text'].freeze()
        if name == 'checkpointing': checkpoint_gradients(model)
        trainer = Trainer(model, torch.optim.AdamW([p for g in model.param_groups() for p in g], lr=1e-5, fused=True),
                          name in HALF)
        batches = [collate(o, TASKS) for o in sets]
    middle = batches[int(np.argsort([n.sum() for n in lengths])[len(lengths)//2])]
    first, mine = timed(lambda: trainer.step(middle)), range(i*STEPS[name], (i + 1)*STEPS[name])
    out = dict(first_step_seconds=first, times=[timed(lambda: trainer.step(batches[j])) for j in mine],
               peak_memory_mb=peak_memory()/2**20, tokens_a_clip=float(np.mean(np.concatenate(lengths))))
    if name != 'upstream': out['operations'] = sum(operations(model, sets[j], name in FROZEN) for j in mine)
    if name != 'upstream' and i == rounds - 1: out['where'] = where_time_goes(lambda: trainer.step(middle))
    report(out)


def in_rounds(rounds, steps):
    "Numbers of batches sorted by length, dealt to rounds so that each has short and long ones"
    order = [i + j*rounds for i in range(rounds) for j in range(steps)]
    return [o if (o//rounds) % 2 == 0 else (o//rounds + 1)*rounds - 1 - o % rounds for o in order]


def report(what): print(json.dumps(what), flush=True)


def in_process(name, a, i=0):
    "What a recipe in a process of its own reports of a round"
    cmd = [sys.executable, __file__, '--only', name, '--round', str(i), '--rounds', str(a.rounds),
           *['--quick'] * a.quick, *(['--data', a.data] if a.data else [])]
    return json.loads(subprocess.run(cmd, stdout=subprocess.PIPE, text=True, check=True).stdout)


def summed(found, products):
    "What was found of a recipe, in all and of each round"
    times = [o['times'] for o in found]
    steps, rounds = sum(map(len, times)), [sum(o) for o in times]
    r = dict(found[-1], first_step_seconds=[o['first_step_seconds'] for o in found],
             peak_memory_mb=max(o['peak_memory_mb'] for o in found), times=times, rounds=rounds, steps=steps,
             clips_a_second=8*steps/sum(rounds), seconds_a_step=sum(rounds)/steps)
    if 'operations' in r:
        del r['operations']
        done = [o['operations'] for o in found]
        r |= dict(operations_a_step=sum(done)/steps, operations_a_second=sum(done)/sum(rounds),
                  utilisations=[o/t/p for o, t, p in zip(done, rounds, products)],
                  even_rounds=[t*sum(done)/len(done)/o for o, t in zip(done, rounds)])
    return r


def losses(quick, data):
    """The loss of both on one padded batch, and the largest difference of the gradients.

    The two must agree in the original's configuration without dropout"""
    n = spread_batches(released_lengths(data), 8, 3)[1].clip(2, 40 if quick else 500)
    batch = collate(clips_of(n, np.random.default_rng(1), TASKS), TASKS, 'left', FULL)
    net = HICCAP(
        config(quick, True, dropout=0.0, attention_dropout=0.0, state_dropout=0.0, head_dropout=0.0), TASKS, seed=0
    ).train()
    with torch.no_grad():
        for pool in net.pools.values(): pool.v.mul_(.1)  # the original's pooling overflows near its own start
        for m in net.modules():
            if isinstance(m, nn.BatchNorm1d): m.momentum = 0.
        ours = MultiTaskLoss(TASKS)(net(batch[0]), batch[1]).item()
        with autocast('cpu', torch.bfloat16): half = MultiTaskLoss(TASKS)(net(batch[0]), batch[1]).item()
        theirs = MultiTaskLoss(TASKS)(Recipe(net)(batch[0]), batch[1]).item()
    return dict(ours=ours, upstream=theirs, difference=abs(ours - theirs), bfloat16=abs(half - ours))


def spread(values):
    "The middle half of some values"
    return [float(o) for o in np.quantile(values, (.25, .75))]


def in_turn(names, dtype, a):
    "Ways measured round after round: what was found of each, and the matrix products a second in each round"
    found, products, n = {k: [] for k in names}, [], 256 if a.quick else 2048
    for i in range(a.rounds):
        best = matrix_product(n, dtype=dtype)
        for k in names[::(1, -1)[i % 2]]: found[k].append(in_process(k, a, i))
        products.append(max(best, matrix_product(n, dtype=dtype)))
        print(f"round {i + 1} of {a.rounds}: "
              + ', '.join(f"{k} {sum(o[-1]['times'])/STEPS[k]:.2f} s a step" for k, o in found.items())
              + f', matrix product {products[-1]/1e9:.0f} GFLOP/s', flush=True)
    return {k: summed(o, products) for k, o in found.items()}, products


def ratios(r):
    "Speed and memory of each way as a share of the original recipe's, and utilisation, with the middle half of rounds"
    up, found, between = r['upstream'], {}, {}
    for k in r:
        if k == 'upstream': continue
        own, start = r[k], '' if k == 'hiccap' else f'{k}_'
        found |= {f'{start}speed': own['clips_a_second']/up['clips_a_second'],
                  f'{start}memory': own['peak_memory_mb']/up['peak_memory_mb'],
                  f'{start}utilisation': float(np.median(own['utilisations']))}
        fast = [u/(t/STEPS[k]) for u, t in zip(up['rounds'], own['even_rounds'])]
        between |= {f'{start}speed': spread(fast), f'{start}utilisation': spread(own['utilisations'])}
    return dict(ratios=found, spread=between)


def show(r):
    "Print what was found"
    m, q = r['machine'], r['ratios']
    print(f"{m['processor']}, {m['threads']} threads; a matrix product does"
          f" {r['product_operations_a_second']/1e9:.0f} GFLOP/s in float32 and"
          f" {r['bfloat16_product_operations_a_second']/1e9:.0f} in bfloat16 (medians of rounds)")
    for k in STEPS:
        start = '' if k == 'hiccap' else f'{k}_'
        text = f"{k}: {r[k]['clips_a_second']:.3f} clips/s, {r[k]['peak_memory_mb']:.0f} MB"
        if k != 'upstream':
            low, high = r['spread'][f'{start}speed']
            text += (f"; {q[f'{start}speed']:.2f} times as fast (middle half of rounds {low:.2f} to {high:.2f}),"
                     f" {q[f'{start}memory']:.2f} of the memory, utilisation {q[f'{start}utilisation']:.0%}")
        print(text)
    print(f"losses {r['losses']['ours']:.6f} and {r['losses']['upstream']:.6f}, {r['losses']['difference']:.1e} apart;"
          f" in bfloat16 {r['losses']['bfloat16']:.1e} apart")


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--quick', action='store_true', help='a tiny network and few steps')
    ap.add_argument('--data', help='the released validation split')
    ap.add_argument('--rounds', type=int, default=4, help=f'of {", ".join(f"{v} {k}" for k, v in STEPS.items())} steps')
    ap.add_argument('--out', help='JSON file to write')
    ap.add_argument('--only', choices=(*STEPS, 'losses'), help=argparse.SUPPRESS)
    ap.add_argument('--round', type=int, default=0, help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.quick: a.rounds = 2
    if a.only:
        if a.only == 'losses': report(losses(a.quick, a.data))
        else: measure(a.only, a.quick, a.data, a.rounds, a.round)
        sys.exit()
    found = in_process('losses', a)
    r = dict(losses=found, machine=machine(), quick=a.quick, ratios={}, spread={})
    for names, dtype in zip(GROUPS, (torch.float32, torch.bfloat16)):
        found, products = in_turn(('upstream', *names), dtype, a)
        start = '' if dtype == torch.float32 else 'bfloat16_'
        r |= {f'{start}products': products, f'{start}product_operations_a_second': float(np.median(products))}
        for k, v in ratios(found).items(): r[k] |= v
        r |= {k if k in names else f'{start}upstream': v for k, v in found.items()}
    show(r)
    if a.out:
        with open(a.out, 'w', encoding='utf-8') as f:
            json.dump(r, f, indent=1)
            f.write('\n')
