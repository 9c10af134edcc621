"""Writes src/equations/*.md: the equations of the documentation as MathML, from the LaTeX below.

    pip install latex2mathml==3.81.1 && python docs/equations.py

Browsers render MathML themselves, so the documentation needs no script and nothing from a network.
"""

from pathlib import Path

from latex2mathml.converter import convert

# Each line of an equation: left side, right side, and a remark.
EQUATIONS: dict[str, list[tuple[str, str, str]]] = {
    "scores": [
        (r"s_{ij}", r"= \sigma\, Q_i \cdot K_j", r"\text{over the keys } j \text{ that query } i \text{ sees}"),
        (r"\mathrm{lse}_i", r"= \log \sum_j e^{s_{ij}}", ""),
        (r"\mathrm{attn}_i", r"= \sum_j e^{s_{ij} - \mathrm{lse}_i}\, V_j", ""),
    ],
    "virtual_key": [
        (r"u_i", r"= \tanh(Q_i A_k + a_k)", r"[r_k]"),
        (r"P_{k,i}", r"= Q_i + u_i B_k + b_k", r"\text{virtual key}"),
        (r"s_{0,i}", r"= \tau_i\, \sigma\, Q_i \cdot P_{k,i}", r"\text{its score}"),
        (r"\lambda_i", r"= \mathrm{sigmoid}(s_{0,i} - \mathrm{lse}_i)", r"\text{its softmax weight}"),
    ],
    "virtual_value": [
        (r"h_i", r"= \tanh(Q_i A_v + a_v)", r"[r_v]"),
        (r"\Delta_i", r"= h_i B_v + b_v", r"\text{virtual value}"),
    ],
    "outputs": [
        (r"O_i", r"= \mathrm{attn}_i + \lambda_i \Delta_i", r"\text{residual}"),
        (r"O_i", r"= (1 - \lambda_i)\, \mathrm{attn}_i + \lambda_i \Delta_i", r"\text{direct}"),
        (r"O_i", r"= (1 - \lambda_i)\, \mathrm{attn}_i", r"\text{zero}"),
        (r"O_i", r"= \mathrm{attn}_i, \quad U_i = \lambda_i h_i", r"\text{extended}"),
    ],
    "scores_full": [
        (
            r"s_{ij}",
            r"= c \tanh(\sigma\, Q_i \cdot K_j / c) - \mathrm{slope} \cdot |\mathrm{offset}_i - j|",
            r"\text{without a softcap: } \sigma\, Q_i \cdot K_j",
        ),
        (r"\mathrm{offset}_i", r"= i + M - N", ""),
    ],
    "expanded_score": [
        (r"s_{0,i}", r"= \tau_i\, \sigma\, (Q_i \cdot Q_i + u_i \cdot Q_i B_k^\top + Q_i \cdot b_k)", ""),
    ],
    "backward_attention": [
        (r"P", r"= e^{S - \mathrm{lse}}", ""),
        (r"dP", r"= dO\, V^\top", ""),
        (r"dS", r"= P \circ (w\, \tilde m \circ dP - D')", ""),
        (r"dV", r"= (w\, P \circ \tilde m)^\top dO", ""),
        (r"dK", r"= \sigma\, dS^\top Q", ""),
        (r"dQ", r"= \sigma\, dS\, K + dQ_0", ""),
    ],
    "backward_residual": [
        (r"w", r"= 1", ""),
        (r"ds_0", r"= \lambda (1 - \lambda)\, \tilde m_0\, dO \cdot \Delta", ""),
        (r"D'", r"= dO \cdot O - \tilde m_0 \lambda^2\, dO \cdot \Delta - d\mathrm{lse}", ""),
    ],
    "backward_direct": [
        (r"w", r"= 1 - \lambda", ""),
        (r"ds_0", r"= \lambda\, (\tilde m_0\, dO \cdot \Delta - dO \cdot O)", ""),
        (r"D'", r"= w\, dO \cdot O - d\mathrm{lse}", ""),
    ],
    "backward_extended": [
        (r"w", r"= 1", ""),
        (r"ds_0", r"= \lambda (1 - \lambda)\, \tilde m_0\, dU \cdot h", ""),
        (r"D'", r"= dO \cdot \mathrm{attn} + ds_0 - d\mathrm{lse}", ""),
    ],
    "backward_inducer": [
        (r"W", r"= Q B_k^\top", ""),
        (r"G", r"= dO\, B_v^\top \quad \text{(extended: } G = dU \text{)}", ""),
        (r"dz_k", r"= \tau \sigma\, ds_0\, (W \circ (1 - u^2))", ""),
        (r"dz_v", r"= \tilde m_0 \lambda\, G \circ (1 - h^2)", ""),
        (
            r"dQ_0",
            r"= \tau \sigma\, ds_0\, (2 Q + u B_k + b_k) + dz_k A_k^\top + dz_v A_v^\top",
            "",
        ),
        (r"dA_k", r"= Q^\top dz_k, \quad da_k = \textstyle\sum dz_k", ""),
        (r"dB_k", r"= u^\top (\tau \sigma\, ds_0\, Q), \quad db_k = \textstyle\sum \tau \sigma\, ds_0\, Q", ""),
        (r"dA_v", r"= Q^\top dz_v, \quad da_v = \textstyle\sum dz_v", ""),
        (
            r"dB_v",
            r"= h^\top (\tilde m_0 \lambda\, dO), \quad db_v = \textstyle\sum \tilde m_0 \lambda\, dO",
            "",
        ),
    ],
}

ALIGN = ("right", "left", "left")


def cell(latex: str, column: int) -> str:
    """One cell of the table of lines."""
    content = ""
    if latex:
        math = convert(latex, display="block")
        content = math[math.index(">") + 1 : math.rindex("</math>")]
    left = "2em" if column == 2 else "0.3em"
    return f'<mtd style="text-align:{ALIGN[column]};padding:0.2em 0 0.2em {left}">{content}</mtd>'


def equation(lines: list[tuple[str, str, str]]) -> str:
    """The lines of an equation, aligned at their equals signs."""
    columns = 3 if any(remark for _, _, remark in lines) else 2
    rows = [
        "<mtr>" + "".join(cell(latex, i) for i, latex in enumerate(line[:columns])) + "</mtr>" for line in lines
    ]
    # No blank line inside: it would end the block of HTML.
    return '<math display="block" displaystyle="true"><mtable displaystyle="true">\n' + "\n".join(rows) + "\n</mtable></math>\n"


def main() -> None:
    folder = Path(__file__).resolve().parent.parent / "src" / "equations"
    folder.mkdir(exist_ok=True)
    for name, lines in EQUATIONS.items():
        (folder / f"{name}.md").write_text(equation(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
