"""Which language a text is in, by its commonest words or its script, and fluent sentences that answer nothing."""

import re
from collections.abc import Mapping
from typing import Final

# Words that are common in one of these languages and rare in the others; Russian, Chinese, Japanese have their script.
COMMON: Final[Mapping[str, str]] = {
    "en": "the and is of to that for with are you what how this which from have your it my can",
    "de": "der die das und ist nicht wie eine einen zu mit auf für ich werden auch sich bei wenn",
    "fr": "le les des est une pour dans qui vous pas avec sur sont plus comment et je cette mais",
    "es": "el los las es una por con para cómo qué está pero muy y puede usted como más del",
    "it": "il gli che è una per con sono come non della nel questo anche più ma di le si",
    "pt": "o os um uma não com para como é são mais você em isso ao muito na do que",
    "nl": "het een en van dat niet met voor zijn hoe je op ook wat deze naar bij kan",
    "sv": "och att det är en som på för inte med av ett hur kan jag om till den",
    "pl": "jest nie się na że do jak to czy co dla jego są w z tym o i",
    "tr": "ve bir bu için ile ne nasıl daha çok gibi olan da de değil mi en var",
}
SCRIPTS: Final = {
    "ja": re.compile(r"[\u3040-\u30ff]"),
    "zh": re.compile(r"[\u4e00-\u9fff]"),
    "ru": re.compile(r"[а-яё]"),
}
# Prompts for which another language may be right.
ABOUT_LANGUAGES: Final = re.compile(
    r"translat|language|linguist|english|german|french|spanish|italian|portug|dutch|swed|polish|turk|russia|chinese|"
    r"mandarin|japan|latin|überset|traduc|tradui|tradur|vertaal|översätt",
    re.IGNORECASE,
)

SENTENCES: Final[Mapping[str, tuple[str, ...]]] = {
    "en": (
        "That depends on several things that have to be looked at one by one.",
        "Most people would begin with the simple part and leave the rest for later.",
        "There are good arguments on both sides, and each of them has its place.",
        "It is worth taking some time before you make up your mind.",
        "In the end, everybody has to find the way that suits them best.",
        "Many have had the same question, and they found different solutions.",
        "With a little patience, the whole matter becomes much clearer.",
        "An example from daily life shows what is meant by that.",
        "One should not forget how much has changed over the years.",
        "If anything remains unclear, it helps to talk about it with others.",
    ),
    "de": (
        "Das hängt von mehreren Dingen ab, die man nacheinander betrachten sollte.",
        "Die meisten Menschen beginnen mit dem einfachen Teil und lassen den Rest für später.",
        "Für beide Seiten gibt es gute Gründe, und jeder davon hat seine Berechtigung.",
        "Es lohnt sich, in Ruhe darüber nachzudenken, bevor man sich entscheidet.",
        "Am Ende muss jeder den Weg finden, der am besten zu ihm passt.",
        "Viele haben sich diese Frage schon gestellt und sind zu verschiedenen Ergebnissen gekommen.",
        "Mit etwas Geduld wird die ganze Angelegenheit deutlich klarer.",
        "Ein Beispiel aus dem Alltag zeigt, was damit gemeint ist.",
        "Man darf nicht vergessen, wie viel sich im Laufe der Jahre verändert hat.",
        "Wenn noch etwas unklar ist, hilft ein Gespräch mit anderen weiter.",
    ),
    "fr": (
        "Cela dépend de plusieurs éléments qu'il faut examiner l'un après l'autre.",
        "La plupart des gens commencent par la partie simple et gardent le reste pour plus tard.",
        "Il existe de bons arguments des deux côtés, et chacun a sa place.",
        "Il vaut mieux prendre le temps de réfléchir avant de se décider.",
        "Au bout du compte, chacun doit trouver le chemin qui lui convient le mieux.",
        "Beaucoup se sont déjà posé cette question et ont trouvé des réponses différentes.",
        "Avec un peu de patience, toute l'affaire devient beaucoup plus claire.",
        "Un exemple tiré de la vie quotidienne montre ce que cela veut dire.",
        "Il ne faut pas oublier à quel point les choses ont changé au fil des ans.",
        "Si quelque chose reste obscur, il est utile d'en parler avec d'autres.",
    ),
    "es": (
        "Eso depende de varias cosas que conviene mirar una por una.",
        "La mayoría de la gente empieza por la parte sencilla y deja el resto para después.",
        "Hay buenos argumentos en ambos lados, y cada uno tiene su lugar.",
        "Vale la pena tomarse un tiempo antes de decidir.",
        "Al final, cada persona tiene que encontrar el camino que más le conviene.",
        "Muchos se han hecho la misma pregunta y han llegado a respuestas distintas.",
        "Con un poco de paciencia, todo el asunto se vuelve mucho más claro.",
        "Un ejemplo de la vida diaria muestra lo que se quiere decir con esto.",
        "No hay que olvidar cuánto han cambiado las cosas con los años.",
        "Si algo no queda claro, ayuda hablarlo con otras personas.",
    ),
    "it": (
        "Dipende da diverse cose che bisogna guardare una alla volta.",
        "La maggior parte delle persone comincia dalla parte semplice e lascia il resto per dopo.",
        "Ci sono buoni argomenti da entrambe le parti, e ognuno ha il suo posto.",
        "Vale la pena di prendersi un po' di tempo prima di decidere.",
        "Alla fine ognuno deve trovare la strada che gli si addice di più.",
        "Molti si sono già fatti questa domanda e hanno trovato risposte diverse.",
        "Con un po' di pazienza tutta la questione diventa molto più chiara.",
        "Un esempio preso dalla vita di tutti i giorni mostra che cosa si intende.",
        "Non bisogna dimenticare quanto sia cambiato nel corso degli anni.",
        "Se qualcosa non è chiaro, aiuta parlarne con altre persone.",
    ),
    "pt": (
        "Isso depende de várias coisas que devem ser vistas uma a uma.",
        "A maioria das pessoas começa pela parte simples e deixa o resto para depois.",
        "Há bons argumentos dos dois lados, e cada um tem o seu lugar.",
        "Vale a pena pensar com calma antes de tomar uma decisão.",
        "No fim, cada pessoa tem de encontrar o caminho que mais lhe convém.",
        "Muitos já fizeram a mesma pergunta e chegaram a respostas diferentes.",
        "Com um pouco de paciência, todo o assunto fica muito mais claro.",
        "Um exemplo da vida diária mostra o que se quer dizer com isso.",
        "Não se deve esquecer o quanto as coisas mudaram ao longo dos anos.",
        "Se algo não ficou claro, ajuda conversar com outras pessoas.",
    ),
    "nl": (
        "Dat hangt af van verschillende dingen die je een voor een moet bekijken.",
        "De meeste mensen beginnen met het eenvoudige deel en bewaren de rest voor later.",
        "Er zijn goede argumenten aan beide kanten, en elk heeft zijn plaats.",
        "Het is de moeite waard om er rustig over na te denken voordat je kiest.",
        "Uiteindelijk moet iedereen de weg vinden die het beste bij hem past.",
        "Velen hebben zich dezelfde vraag gesteld en verschillende antwoorden gevonden.",
        "Met een beetje geduld wordt de hele zaak een stuk duidelijker.",
        "Een voorbeeld uit het dagelijks leven laat zien wat ermee bedoeld wordt.",
        "Je mag niet vergeten hoeveel er in de loop van de jaren veranderd is.",
        "Als er nog iets onduidelijk is, helpt het om er met anderen over te praten.",
    ),
    "sv": (
        "Det beror på flera saker som man måste titta på en i taget.",
        "De flesta börjar med den enkla delen och sparar resten till senare.",
        "Det finns goda argument på båda sidor, och vart och ett har sin plats.",
        "Det är värt att tänka efter i lugn och ro innan man bestämmer sig.",
        "Till slut måste var och en hitta den väg som passar bäst.",
        "Många har ställt sig samma fråga och kommit fram till olika svar.",
        "Med lite tålamod blir hela saken mycket tydligare.",
        "Ett exempel från vardagen visar vad som menas med det.",
        "Man får inte glömma hur mycket som har förändrats genom åren.",
        "Om något fortfarande är oklart hjälper det att prata med andra.",
    ),
    "pl": (
        "To zależy od kilku rzeczy, którym trzeba przyjrzeć się po kolei.",
        "Większość ludzi zaczyna od prostej części, a resztę zostawia na później.",
        "Po obu stronach są dobre argumenty i każdy z nich ma swoje miejsce.",
        "Warto spokojnie się zastanowić, zanim podejmie się decyzję.",
        "Ostatecznie każdy musi znaleźć drogę, która najbardziej mu odpowiada.",
        "Wielu zadawało sobie to samo pytanie i doszło do różnych odpowiedzi.",
        "Przy odrobinie cierpliwości cała sprawa staje się dużo jaśniejsza.",
        "Przykład z codziennego życia pokazuje, co się przez to rozumie.",
        "Nie wolno zapominać, jak wiele zmieniło się z biegiem lat.",
        "Jeśli coś jest niejasne, pomaga rozmowa z innymi ludźmi.",
    ),
    "tr": (
        "Bu, tek tek bakılması gereken birkaç şeye bağlıdır.",
        "Çoğu insan kolay kısımdan başlar ve gerisini sonraya bırakır.",
        "Her iki tarafta da iyi gerekçeler var ve her birinin yeri ayrıdır.",
        "Karar vermeden önce biraz düşünmeye değer.",
        "Sonunda herkes kendisine en uygun yolu bulmak zorundadır.",
        "Birçok kişi aynı soruyu sordu ve farklı cevaplara ulaştı.",
        "Biraz sabırla bütün konu çok daha açık hale gelir.",
        "Günlük hayattan bir örnek bununla ne kastedildiğini gösterir.",
        "Yıllar içinde ne kadar çok şeyin değiştiği unutulmamalıdır.",
        "Bir şey açık değilse, başkalarıyla konuşmak yardımcı olur.",
    ),
    "ru": (
        "Это зависит от нескольких вещей, которые нужно рассмотреть по порядку.",
        "Большинство людей начинает с простой части, а остальное оставляет на потом.",
        "Хорошие доводы есть у обеих сторон, и у каждого из них своё место.",
        "Стоит спокойно подумать, прежде чем принимать решение.",
        "В конце концов каждый должен найти тот путь, который ему подходит.",
        "Многие уже задавали себе этот вопрос и пришли к разным ответам.",
        "Если набраться терпения, всё становится намного понятнее.",
        "Пример из повседневной жизни показывает, что имеется в виду.",
        "Не следует забывать, как много изменилось за эти годы.",
        "Если что-то осталось неясным, помогает разговор с другими людьми.",
    ),
    "zh": (
        "这取决于几个方面，需要一个一个地看。",
        "大多数人会先从简单的部分开始，其余的留到以后再说。",
        "双方都有很好的理由，每一种理由都有它的道理。",
        "在做决定之前，最好花一点时间认真想一想。",
        "最后，每个人都要找到最适合自己的方法。",
        "很多人都问过同样的问题，得到的答案却各不相同。",
        "只要有一点耐心，整件事情就会变得清楚得多。",
        "日常生活中的一个例子可以说明这是什么意思。",
        "我们不应该忘记，这些年来发生了多大的变化。",
        "如果还有不明白的地方，和别人谈一谈会有帮助。",
    ),
    "ja": (
        "それはいくつかのことによって決まるので、一つずつ見ていく必要があります。",
        "多くの人は簡単な部分から始めて、残りは後に回します。",
        "どちらの側にもよい理由があり、それぞれに意味があります。",
        "決める前に、少し時間をかけて考えてみる価値があります。",
        "結局のところ、自分に一番合った方法を見つけるしかありません。",
        "同じ質問をした人はたくさんいますが、答えはさまざまでした。",
        "少し我慢すれば、全体がずっとわかりやすくなります。",
        "毎日の生活の中の例を見れば、その意味がわかります。",
        "長い年月の間にどれほど変わったかを忘れてはいけません。",
        "まだわからないことがあれば、ほかの人と話すと役に立ちます。",
    ),
}


def language_of(text: str) -> str | None:
    """Return the language of a text, as a key of SENTENCES; None if it is not clear."""
    letters = sum(map(str.isalpha, text))
    for language, script in SCRIPTS.items():
        # Japanese comes first: a third of it may be characters that are Chinese, too.
        if letters and len(script.findall(text.lower())) > letters * (0.2 if language == "ja" else 0.5):
            return language
    words = re.findall(r"[^\W\d_]+", text.lower())
    counts = {language: sum(map(common.split().__contains__, words)) for language, common in COMMON.items()}
    best, second = sorted(counts, key=counts.__getitem__, reverse=True)[:2]
    is_clear = counts[best] >= 2 and counts[best] > 1.5 * counts[second]
    return best if is_clear else None
