"""The original HICCAP network as plain functions of a released state dict, in float64, written from its description.

Nothing here comes from `hiccap.model`: loops over time for the LSTM, an explicit softmax for attention, the released
names for the weights. `tests/test_model.py` compares the library's network with it, on weights and lengths that no
stored file has.
"""
import importlib.util
import os
from pathlib import Path

import numpy as np
import torch

import hiccap

ORDERS = dict(binary=dict(text='va', audio='vt', video='ta'), multi_task=dict(text='va', audio='vt', video='at'),
              matching=dict(text='av', audio='tv', video='ta'), contrastive=dict(text='av', audio='tv', video='ta'))
NAMES = dict(t='text', a='audio', v='video')
ATTENTION, POOL = dict(text=7, audio=10, video=13), dict(text=16, audio=18, video=20)
TASKS = dict(binary=dict(binary='img_audio_text_linear'),
             multi_task={t: f'img_audio_text_linear_{t}' for t in ('mature', 'gory', 'slapstick', 'sarcasm')})
PAIRS = dict(text_audio=('TAM_linear', 'text', 'audio'), video_audio=('IAM_linear', 'video', 'audio'),
             video_text=('ITM_linear', 'video', 'text'))


def parity_folder():
    "`../shared/parity` beside the checkout, or the folder that `HICCAP_PARITY` names; None where there is none"
    root = Path(os.environ.get('HICCAP_PARITY') or Path(hiccap.__file__).resolve().parents[2]/'shared'/'parity')
    return root if (root/'recipe.py').exists() else None


def parity_recipe():
    "The module `recipe.py` of that folder"
    spec = importlib.util.spec_from_file_location('parity_recipe', parity_folder()/'recipe.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Reference:
    "One variant in evaluation mode; `W` maps released names to arrays"
    def __init__(self, W, variant, layers=2, heads=12):
        self.W, self.variant, self.layers, self.heads = ({k: torch.as_tensor(v).double() for k, v in W.items()},
                                                         variant, layers, heads)

    def linear(self, x, name): return x @ self.W[name + '.weight'].T + self.W[name + '.bias']

    def layer_norm(self, x, name, eps=1e-5):
        d = x - x.mean(-1, keepdim=True)
        return d/((d*d).mean(-1, keepdim=True) + eps).sqrt()*self.W[name + '.weight'] + self.W[name + '.bias']

    def batch_norm(self, x, name, eps=1e-5):
        w = self.W
        return (x - w[name + '.running_mean']) / (w[name + '.running_var'] + eps).sqrt() * w[name + '.weight'] + w[
            name + '.bias']

    def attention(self, q, k, v, penalty=0.):
        "Each (B, L, D); heads side by side in D"
        def split(x): return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = map(split, (q, k, v))
        s = q @ k.transpose(-1, -2)/q.shape[-1]**.5 + penalty
        e = (s - s.amax(-1, keepdim=True)).exp()
        return (e/e.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2)

    def bert(self, ids):
        "No attention mask; positions count padding"
        p, n = 'features.0.embeddings.', ids.shape[1]
        x = (self.W[p + 'word_embeddings.weight'][ids] + self.W[p + 'position_embeddings.weight'][:n]
             + self.W[p + 'token_type_embeddings.weight'][0])
        x = self.layer_norm(x, p + 'LayerNorm', 1e-12)
        for i in range(self.layers):
            p = f'features.0.encoder.layer.{i}.'
            a = self.attention(*(self.linear(x, p + f'attention.self.{o}') for o in ('query', 'key', 'value')))
            x = self.layer_norm(
                self.linear(a, p + 'attention.output.dense') + x, p + 'attention.output.LayerNorm', 1e-12)
            h = self.linear(x, p + 'intermediate.dense')
            h = h*(1 + torch.erf(h/2**.5))/2
            x = self.layer_norm(self.linear(h, p + 'output.dense') + x, p + 'output.LayerNorm', 1e-12)
        return x

    def lstm(self, x, name):
        "Two layers, both directions, over all positions"
        def direction(x, end):
            w_ih, w_hh, b_ih, b_hh = (
                self.W[f'{name}.{o}{end}'] for o in ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh'))
            z, h, c, out = x @ w_ih.T + b_ih + b_hh, 0, 0, []
            for t in range(x.shape[1]):
                i, f, g, o = (z[:, t] + (h @ w_hh.T if t else 0)).chunk(4, -1)
                c = f.sigmoid()*c + i.sigmoid()*g.tanh()
                h = o.sigmoid()*c.tanh()
                out.append(h)
            return torch.stack(out, 1)
        for i in range(2): x = torch.cat([direction(x, f'_l{i}'), direction(x.flip(1), f'_l{i}_reverse').flip(1)], -1)
        return x

    def branch(self, states, masks, m):
        n, h = ATTENTION[m], states[m]
        for step, letter in enumerate(ORDERS[self.variant][m], 1):
            c = NAMES[letter]
            penalty = (1 - masks[c].double())[:, None, None]*-10000
            a = self.attention(self.linear(h, f'features.{n}.query'), self.linear(states[c], f'features.{n}.key'),
                               self.linear(states[c], f'features.{n}.value'), penalty)
            h = self.layer_norm(a, f'features.{n + step}.1')
        return h + states[m]

    def pool(self, h, m):
        s = torch.tanh(self.linear(h, f'features.{POOL[m]}.u')) @ self.W[f'features.{POOL[m]}.v']
        a = s.exp() + 1e-10
        return self.layer_norm(((a/a.sum(1, keepdim=True))[..., None]*h).sum(1), f'features.{POOL[m] + 1}.1')

    def head(self, x, name, n_norms):
        for i in range(n_norms): x = self.batch_norm(self.linear(x, f'{name}.{3*i}'), f'{name}.{3*i + 1}')
        return self.linear(self.linear(x, f'{name}.{3*n_norms}'), f'{name}.{3*n_norms + 1}').softmax(-1)

    def project(self, x):
        for i in (0, 3): x = self.batch_norm(self.linear(x, f'g_CL.{i}'), f'g_CL.{i + 1}').clamp(min=0)
        return self.linear(x, 'g_CL.6')

    def __call__(self, inputs):
        "name -> array, as `outputs.npz` names them without the variant"
        x = {k: torch.as_tensor(v) for k, v in inputs.items()}
        states = dict(text=self.bert(x['text']))
        for m, (lstm, norm, proj) in dict(video=(1, 2, 6), audio=(3, 4, 5)).items():
            h = self.layer_norm(self.lstm(x[m].double(), f'features.{lstm}'), f'features.{norm}.1')
            states[m] = self.layer_norm(self.linear(h, f'features.{proj}.0'), f'features.{proj}.1')
        masks = {m: x[f'{m}_mask'] for m in states}
        out = {m: self.pool(self.branch(states, masks, m), m) for m in states}
        pooled = dict(out)
        if self.variant in TASKS:
            every = torch.cat([pooled[m] for m in ('text', 'audio', 'video')], 1)
            out |= {t: self.head(every, name, 2) for t, name in TASKS[self.variant].items()}
        if self.variant == 'matching':
            out |= {p: self.head(torch.cat([pooled[a], pooled[b]], 1), name, 3) for p, (name, a, b) in PAIRS.items()}
        if self.variant == 'contrastive': out |= {f'{m}_projection': self.project(v) for m, v in pooled.items()}
        return {k: v.numpy().astype(np.float64) for k, v in out.items()}
